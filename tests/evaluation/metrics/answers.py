"""Predictions for tests of metrics, of which only what a metric reads is given."""

from visualchat.evaluation.predictions import Prediction


def answered(answer: str, *references: str, **fields) -> Prediction:
    """An answer beside what is accepted; the first of it is the true one."""
    unread = {
        **{"column": "tuned", "mode": "free_running", "part": "all", "dialogue": "d", "round": 1, "kind": ""},
        **{"question": "?", "shown": (), "images": 1, "sent": 1, "distance": 0, "options": (), "about": (), "tags": {}},
        **{"ended": "stop", "exact": False},
    }
    return Prediction(**unread | {"answer": answer, "references": references} | fields)


def values(scores) -> list[float]:
    return [score.value for score in scores]
