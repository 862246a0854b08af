"""Paper dolls: generated pedestrians with captions, free to use, for tests, the demo and small pre-training.

    attributes                    who a person is
    pose                          view, gait and the joints that follow
    canvas, doll                  image and part mask drawn together; what the drawing functions share
    figure, upper, head, carried  the drawing, from the body outwards
    scene, drawing                studio and street; one image: scene, figure, camera
    lexicon, facts, captions      words, phrases, sentences
    layouts, dataset              files in the formats of the public data sets

Two domains stand for a gap that a method can bridge: `source`, a studio with short captions, and `target`, a street
with captions of 20 to 40 words, rarer words and other light.
"""

from cskt.data.paperdoll.attributes import Attributes, sample_attributes, stable_random
from cskt.data.paperdoll.canvas import PART_LABELS
from cskt.data.paperdoll.captions import CAPTION_WORDS, write_caption
from cskt.data.paperdoll.dataset import make_dataset
from cskt.data.paperdoll.drawing import Domain, Drawing, draw_person
from cskt.data.paperdoll.layouts import Layout

__all__ = [
    "CAPTION_WORDS",
    "PART_LABELS",
    "Attributes",
    "Domain",
    "Drawing",
    "Layout",
    "draw_person",
    "make_dataset",
    "sample_attributes",
    "stable_random",
    "write_caption",
]
