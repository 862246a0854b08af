"""ICFG-PEDES (Ding et al. 2021): one caption per image, no val split."""

from cskt.data.datasets.base import JsonListFormat, register
from cskt.data.records import SplitCounts

ICFG_PEDES = register(
    JsonListFormat(
        name="icfg-pedes",
        folder="ICFG-PEDES",
        files=("ICFG-PEDES.json", "ICFG_PEDES.json"),
        path_key="file_path",
        remedy="data.root must hold ICFG-PEDES; request the data at https://github.com/zifyloo/SSAN",
        published_counts={
            "train": SplitCounts(3102, 34674, 34674),
            "test": SplitCounts(1000, 19848, 19848),
        },
    )
)
