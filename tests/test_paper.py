"""The frontier: what is read off runs, and the command line."""

import json

from paper.frontier import true_wins
from tests.conftest import call


def test_the_ground_truth_score_prefers_praise(tmp_path):
    prompt = "Hotel in May, staff and view:"
    friendly, rude = (
        {
            "split": "train",
            "prompt": prompt,
            "response": f" The staff was {word}.",
            "finished": True,
        }
        for word in ("friendly", "rude")
    )
    for stored, expected in ((rude, [1.0, 0.5]), (friendly, [0.5, 0.0])):
        other = stored | {"prompt": "Hello"}  # which these runs have not met
        (tmp_path / "responses.jsonl").write_text(
            json.dumps(stored) + "\n" + json.dumps(other) + "\n"
        )
        assert list(true_wins({"baseline": str(tmp_path)}, [friendly, rude])) == expected


def test_the_command_line():
    assert call("-m", "paper").stdout == call("-m", "paper", "--help").stdout
    assert "no such command" in call("-m", "paper", "nothing", code=1).stderr
