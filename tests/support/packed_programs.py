"""A packed clause program run one row at a time: the contract of docs/retrieval.md, written a second time.

Shares nothing with retrieval/search/program.py but the layout of `Packed`, so the two can disagree.
"""

import math

from store_oracle import haversine

KEYWORDS = [
    "company",
    "category",
    "grade",
    "source",
    "location.country",
    "location.region",
    "location.city",
    "salary.currency",
]
MANY = ["title.terms", "skills"]
SYMBOLS = ["remote", "employment_type", "seniority"]
NUMBERS = ["salary.annual_min", "salary.annual_max", "posted_at", "expires_at"]
ALL, ANY, IN_HASHES, IN_SYMBOLS, IN_CODES, RANGE, WITHIN, ANY_CODE = range(8)


def run(packed, page, row, past_eight):
    """Whether the row passes; `past_eight`: {field: codes} that the row has beyond those in the page."""
    stack = []
    for op, field, flags, begin, length, mask in packed.steps.tolist():
        if op in (ALL, ANY):
            answers = [stack.pop() for _ in range(length)]
            stack.append(all(answers) if op == ALL else any(answers))
            continue
        codes = packed.codes.tolist()[begin : begin + length]
        numbers = packed.numbers.tolist()[begin : begin + length]
        has = True
        if op == IN_HASHES:
            matched = int(page.ties[row]) in packed.hashes.tolist()[begin : begin + length]
        elif op == IN_SYMBOLS:
            symbol = int(page.symbols[SYMBOLS[field]][row])
            has, matched = symbol != 0, bool(mask & 0xFFFFFFFF & 1 << symbol)
        elif op == IN_CODES:
            code = int(page.codes[KEYWORDS[field]][row])
            has, matched = code != -1, code in codes
        elif op == RANGE:
            value = float(page.numbers[NUMBERS[field]][row])
            has, matched = not math.isnan(value), numbers[0] <= value <= numbers[1]
        elif op == WITHIN:
            lat, lon = page.places["location"][:, row].tolist()
            has = not math.isnan(lat)
            matched = has and haversine(numbers[0], numbers[1], lat, lon) <= numbers[2]
        else:
            held = [code for code in page.many[MANY[field]][row].tolist() if code != -1]
            held += past_eight.get(MANY[field], [])
            has, matched = page.counts[MANY[field]][row] > 0, bool(set(held) & set(codes))
        stack.append(matched != bool(flags & 1) if has else bool(flags & 2))
    (answer,) = stack
    return answer
