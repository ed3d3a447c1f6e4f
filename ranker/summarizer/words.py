"""The words that summaries are weighed by: those that say nothing, and those of application forms. Data, no logic."""

from __future__ import annotations

import re

# fmt: off
STOP = frozenset({
    "a", "able", "above", "all", "also", "an", "and", "any", "are", "as", "at", "based", "be", "been", "being",
    "below", "both", "but", "by", "can", "could", "did", "does", "done", "each", "etc", "following", "for",
    "from", "had", "has", "have", "her", "his", "how", "if", "in", "including", "into", "is", "it", "its",
    "may", "more", "most", "must", "not", "of", "on", "one", "only", "or", "other", "our", "own", "per",
    "related", "same", "should", "some", "such", "than", "that", "the", "their", "them", "then", "there",
    "these", "they", "this", "those", "to", "two", "using", "very", "was", "were", "what", "when", "where",
    "which", "while", "who", "whom", "whose", "will", "with", "within", "would", "you", "your",
})
# Words of the application form, not of the work.
FORM = frozenset({
    "announcement", "answer", "answers", "applicant", "applicants", "application", "apply", "applying",
    "appropriate", "attach", "best", "closely", "consideration", "demonstrate", "demonstrates", "describe",
    "described", "describes", "disability", "documentation", "education", "eligible", "employer", "equal",
    "equivalent", "experience", "expert", "federal", "gender", "grade", "independently", "indicate",
    "ineligible", "interest", "job", "level", "none", "normally", "note", "opportunity", "perform", "performed",
    "performing", "position", "possess", "private", "public", "qualifications", "qualified", "qualify",
    "qualifying", "question", "questionnaire", "questions", "race", "rating", "religion", "respond", "response",
    "responses", "resume", "review", "sector", "select", "service", "specialized", "statement", "statements",
    "submit", "supervisor", "task", "tasks", "thank", "transcript", "transcripts", "vacancy", "verification",
    "verify", "veteran", "year", "years", "yes",
})
# fmt: on

# Both are matched against lower-cased text: folding case while matching costs four times as much.
DUTY = re.compile(
    r"\b(?:responsible|duties|responsibilities|manag|supervis|lead|develop|design|maintain|operat|repair|install|"
    r"provid|coordinat|plan|analy[sz]|evaluat|prepar|assist|support|conduct|administer|treat|teach|train|inspect|"
    r"build|deliver|advis|monitor|knowledge of|skill in|ability to|licen[sc]e|certifi|registered|degree in|"
    r"requires?|required|proficien)"
)
BOILERPLATE = re.compile(
    r"thank you for (?:your interest|applying)|"
    r"\b(?:select (?:the|one|all|your|\W?yes|(?:\w+ ){0,3}(?:that|which))|"
    r"please (?:select|review|read|choose|indicate|provide|note|ensure|respond|answer)|"
    r"your (?:resume|responses|answers)|none of the above|subject to verification|failure to|"
    r"used to (?:rate|determine)|this task|these tasks|as described (?:above|in)|described above|"
    r"i (?:do not|don't|have not|haven't|am not|lack|have no\b|have (?:education|performed|experience (?:in )?perform)|"
    r"(?:am|have been|consider myself|am considered) (?:an expert|considered|trained))|"
    r"for each (?:task|item|question|statement)|from the (?:choices|list|options|responses)|"
    r"attach(?:ed)? (?:a copy|your|transcript)|must (?:be|attach|submit|provide)[^.]{0,40}transcript|"
    r"equal (?:opportunity|employment)|without regard to|reasonable accommodation|apply (?:now|today|online)|"
    r"english language proficiency|proficient in (?:basic|spoken)|"
    r"i (?:accept|certify|understand|acknowledge) (?:that|the)|"
    r"(?:i have computed|divide your|your semester|percentage of)|grandfather|carefully (?:read|review)|read all|"
    r"making your selection|selective placement|city and state|if (?:yes|no|not),|do you acknowledge|"
    r"questions relate to|relieve employees|removed from|"
    r"click (?:here|on)|highest level of education|are you (?:a |an )?(?:current|veteran|u\.?s\.? citizen))"
)
