from enum import Enum, auto


class Modality(Enum):
    IMAGE = auto()
    VIDEO = auto()
    AUDIO = auto()
