"""How a model is judged: prediction, geometry, probes, calibration, surprise, goals, verdict."""
