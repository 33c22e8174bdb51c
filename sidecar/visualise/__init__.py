"""Pictures of what a unit of an image model looks for.

The room promises: a request is checked before any work is done on it (``plan``); equal requests give
equal pictures; a picture is of the weights whose digest it carries; every number beside it is in the
view in which the unit is watched live; a unit that cannot be stirred is refused, never painted as
noise; the model is left without hooks, whatever happened; a model file is looked through before anything
loads it, and a converted graph is compared with the original before it is used. Only the worker imports this room: it
needs torch.
"""

from sidecar.visualise.directions import read_directions
from sidecar.visualise.gpu import Share, is_out_of_memory, sharing, shortage
from sidecar.visualise.images import maximise, plan
from sidecar.visualise.loading import load_model, load_onnx
from sidecar.visualise.method import Checkpoint, Directions, Materials, Method
from sidecar.visualise.methods import FORWARD_METHODS, METHODS, method_for
from sidecar.visualise.model import ImageModel, InputForm, VisionModel, with_gradients
from sidecar.visualise.onnx_forward import ForwardModel
from sidecar.visualise.pictures import Cost, Picture, Progress, TypicalRange, read_image
from sidecar.visualise.reliability import Settings, assess, unmeasured, with_reliability
from sidecar.visualise.verdict import Report

__all__ = [
    "FORWARD_METHODS",
    "METHODS",
    "Checkpoint",
    "Cost",
    "Directions",
    "ForwardModel",
    "ImageModel",
    "InputForm",
    "Materials",
    "Method",
    "Picture",
    "Progress",
    "Report",
    "Settings",
    "Share",
    "TypicalRange",
    "VisionModel",
    "assess",
    "is_out_of_memory",
    "load_model",
    "load_onnx",
    "maximise",
    "method_for",
    "plan",
    "read_directions",
    "read_image",
    "sharing",
    "shortage",
    "unmeasured",
    "with_gradients",
    "with_reliability",
]
