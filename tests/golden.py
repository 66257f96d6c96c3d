"""Golden losses: ``python tests/golden.py`` writes tests/golden.json anew, from tests/cases.py.

Do so only where a change of a model's numbers is meant, and say why in the commit.
"""

import json
from pathlib import Path

import torch
from cases import CASES

FILE = Path(__file__).with_name("golden.json")


def loss(name: str) -> float:
    """Mean nats of a case's random events after 20 full-batch steps of Adam, in float64."""
    model = CASES[name].build(0)
    x = CASES[name].events(40)
    params = [one for one in model.parameters() if one.requires_grad]
    torch.manual_seed(0)  # dropout, and the orders of a mixture
    if params:
        objective = model.default_objective()
        optimizer = torch.optim.Adam(params, lr=0.02)
        model.train()
        for _ in range(20):
            optimizer.zero_grad()
            (-objective(x).mean()).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return float(-model.log_prob(x).mean())


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: round(loss(name), 10) for name in CASES}, indent=1) + "\n")
