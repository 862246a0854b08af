"""CUHK-PEDES (Li et al. 2017): two captions per image, for some one or up to ten."""

from cskt.data.datasets.base import JsonListFormat, register
from cskt.data.records import SplitCounts

CUHK_PEDES = register(
    JsonListFormat(
        name="cuhk-pedes",
        folder="CUHK-PEDES",
        files=("reid_raw.json",),
        path_key="file_path",
        remedy=(
            "data.root must hold CUHK-PEDES; request the data at"
            " https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description"
        ),
        published_counts={
            "train": SplitCounts(11003, 34054, 68126),
            "val": SplitCounts(1000, 3078, 6158),
            "test": SplitCounts(1000, 3074, 6156),
        },
    )
)
