"""placeholder"""
import enum
class Failure(enum.Enum):
    UNREACHABLE = "unreachable"
    BROKEN = "broken"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
