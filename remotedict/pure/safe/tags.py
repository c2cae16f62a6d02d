"""The tags of nodes, as they are stored: never another meaning for a number."""

from __future__ import annotations

# Containers.
LIST = 0
TUPLE = 1
DICT = 2
SET = 3
FROZENSET = 4
# Scalars that msgpack doesn't have.
INT = 8
TEXT = 9
COMPLEX = 10
BYTES = 11
BYTEARRAY = 12
RANGE = 13
# Times, and other scalars of the standard library.
DATE = 16
TIME = 17
DATETIME = 18
TIMEDELTA = 19
TIMEZONE = 20
ZONE = 21
DECIMAL = 24
UUID = 25
PATH = 26
# numpy.
ARRAY = 32
SCALAR = 33
TEXT_SCALAR = 34
BYTES_SCALAR = 35
# pandas.
FRAME = 48
SERIES = 49
INDEX = 50
RANGE_INDEX = 51
MULTI_INDEX = 52
OBJECTS = 56
STRINGS = 57
CATEGORICAL = 58
ZONED = 59
PERIODS = 60
INTERVALS = 61
MASKED = 62
ARROW_COLUMN = 63
MISSING = 64
NOT_A_TIME = 65
TIMESTAMP = 66
DELTA = 67
PERIOD = 68
INTERVAL = 69
# Arrow.
ARROW_TABLE = 80
ARROW_BATCH = 81
ARROW_CHUNKS = 82
ARROW_ARRAY = 83
