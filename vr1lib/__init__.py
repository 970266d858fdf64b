"""Vision-R1 (arXiv 2503.06749) as a notebook workbench."""

__version__ = "0.1.0"
