"""What others published, and where it belongs here: what `smallgpt download` fetches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """where: `repository/file` of the hub, or a whole address; target: where it belongs here;
    sha256: None where it is not known before the first time."""

    what: str
    target: str
    where: str
    kind: str = "model"
    sha256: str | None = None


ASSETS = {
    **{
        f"pretrained-{size}": Asset(
            f"the published {size} weights",
            f"checkpoints/pretrained/cpt{size}.pth",
            f"cjl196/small-gpt/cpt{size}.pth",
        )
        for size in ("90M", "300M")
    },
    "hotel-reviews": Asset(
        "7,766 labelled hotel reviews (ChnSentiCorp)",
        "data/ChnSentiCorp_htl_all.csv",
        "https://raw.githubusercontent.com/SophonPlus/ChineseNlpCorpus/master/datasets/"
        "ChnSentiCorp_htl_all/ChnSentiCorp_htl_all.csv",
    ),
    "chitchat": Asset(
        "6.8 million short dialogues (LCCC-base, MIT); data_path takes the file as it is",
        "data/lccc_base_train.jsonl.gz",
        "silver/lccc/lccc_base_train.jsonl.gz",
        "dataset",
        "2162e0ed923fba62329cabf7e1493fbe59248afc94a62508e4abdea61e624627",
    ),
}
