"""The two sizes that every ablation here comes in.

Those of the paper's size have the dropout of its first models, as its tables do: `:v1`.
"""

LAPTOP = "configs/laptop.py"
# Below tables of laptop runs.
PLACES = (
    "The paper's columns are those of its own, far larger models; each stands at the row that has "
    "the same place in the series."
)


def is_laptop(arg: str) -> bool:
    """Whether `arg`, which stands behind the colon, asks for minutes on two CPU cores."""
    if arg not in ("", "laptop"):
        raise ValueError(
            f"unknown argument {arg!r}; there is laptop, and none for the paper's size"
        )
    return arg == "laptop"
