"""The picture of an evaluation holds the curves it names."""

import pytest
import torch

from gjwm.calibration import calibration_report
from gjwm.dynamics import Prediction
from gjwm.figures import prediction_figure


def test_a_report_becomes_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    y = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    law = calibration_report(Prediction(torch.zeros_like(y), torch.ones_like(y)), y)
    report = {
        "prediction": {
            "horizon": 2,
            "r2_by_horizon": [0.9, 0.8],
            "copy_last_r2_by_horizon": [0.5, 0.1],
            "rank_accuracy_by_horizon": [1.0, 0.9],
        },
        "calibration": {**law, "horizon_5": law, "temperature_by_horizon": [1.0]},
    }
    path = prediction_figure(report, tmp_path / "pictures" / "prediction.svg")
    text = path.read_text()
    assert text.startswith("<?xml") and text.count("<path") > 30
