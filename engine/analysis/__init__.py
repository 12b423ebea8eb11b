"""What a set of detections is worth: tables, curves and intervals, all computed from arrays."""
