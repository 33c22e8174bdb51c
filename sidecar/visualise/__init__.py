"""Pictures of what a unit of an image model looks for.

The room promises: a request is checked before any work is done on it (``plan``); equal requests give
equal pictures; a picture is of the weights whose digest it carries; every number beside it is in the
view in which the unit is watched live; a unit that cannot be stirred is refused, never painted as
noise; the model is left without hooks, whatever happened. Only the worker imports this room: it
needs torch.
"""

from sidecar.visualise.images import maximise, plan
from sidecar.visualise.loading import ImageModel, load_model
from sidecar.visualise.method import Checkpoint, Materials, Method
from sidecar.visualise.methods import METHODS, method_for
from sidecar.visualise.pictures import Cost, Picture, Progress, TypicalRange, read_image
from sidecar.visualise.reliability import Settings, assess, with_reliability

__all__ = [
    "METHODS",
    "Checkpoint",
    "Cost",
    "ImageModel",
    "Materials",
    "Method",
    "Picture",
    "Progress",
    "Settings",
    "TypicalRange",
    "assess",
    "load_model",
    "maximise",
    "method_for",
    "plan",
    "read_image",
    "with_reliability",
]
