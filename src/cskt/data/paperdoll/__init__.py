"""Paper dolls: generated pedestrians with captions, free to use, for tests, the demo and small pre-training.

README.md in this folder describes the drawings, the three domains (`source`, `target`, `varied`), the grammar and the
licence.
"""

from cskt.data.paperdoll.attributes import Attributes, sample_attributes, stable_random
from cskt.data.paperdoll.canvas import PART_LABELS
from cskt.data.paperdoll.captions import CAPTION_WORDS, write_caption
from cskt.data.paperdoll.dataset import Layout, make_dataset
from cskt.data.paperdoll.drawing import Domain, Drawing, draw_person
