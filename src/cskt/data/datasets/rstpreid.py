"""RSTPReid (Zhu et al. 2021): two captions per image, five images per identity."""

from cskt.data.datasets.base import JsonListFormat, register
from cskt.data.records import SplitCounts

RSTPREID = register(
    JsonListFormat(
        name="rstpreid",
        folder="RSTPReid",
        files=("data_captions.json",),
        path_key="img_path",
        remedy="data.root must hold RSTPReid; request the data at https://github.com/NjtechCVLab/RSTPReid-Dataset",
        published_counts={
            "train": SplitCounts(3701, 18505, 37010),
            "val": SplitCounts(200, 1000, 2000),
            "test": SplitCounts(200, 1000, 2000),
        },
        withdrawn_counts={  # issue 2 of the authors' repository
            "train": SplitCounts(3901, 19505, 39010),
            "val": SplitCounts(100, 500, 1000),
            "test": SplitCounts(100, 500, 1000),
        },
    )
)
