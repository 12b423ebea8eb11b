"""Older names of `models.detections`, for the modules here that still use them."""

from models.detections import SCORE_DECIMALS as SCORE_DECIMALS
from models.detections import Detections

Found = Detections
joined = Detections.joined
