import pytest

from visualchat.studies.plan import plan_of

PLAN = {
    "name": "mine",
    "title": "A study",
    "question": "Which?",
    "train": ["trainer.max_epochs=1"],
    "factors": {
        "kind": {"causal": ["attention=causal"], "mmca": ["attention=mmca"], "unit": ["attention=unit"]},
        "numbers": {"none": [], "learned": ["attention.image_numbers=learned"]},
    },
    "without": [{"kind": "unit", "numbers": "learned"}],
    "seeds": [0, 1],
    "claims": [
        {"factor": "kind", "level": "mmca", "against": "causal", "expect": "worse"},
        {"factor": "kind", "level": "unit", "against": "causal", "expect": "level", "margin": 2},
        {"factor": "numbers", "level": "learned", "against": "none", "expect": "better", "where": {"kind": "mmca"}},
    ],
}


def test_a_plan_knows_its_arms_what_is_typed_for_them_and_which_pairs_a_claim_is_about():
    plan = plan_of(PLAN)
    assert plan.arms == [
        ("causal", "none"),
        ("causal", "learned"),
        ("mmca", "none"),
        ("mmca", "learned"),
        ("unit", "none"),
    ]
    typed = ("trainer.max_epochs=1", "attention=mmca", "attention.image_numbers=learned")
    assert plan.settings(("mmca", "learned")) == typed
    assert [plan.sides(claim) for claim in plan.claims] == [
        [(("mmca", "none"), ("causal", "none")), (("mmca", "learned"), ("causal", "learned"))],
        [(("unit", "none"), ("causal", "none"))],
        [(("mmca", "learned"), ("mmca", "none"))],
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": None, "questions": "?"}, "unknown questions"),
        ({"seeds": [0, 0]}, r"seeds: expected different whole numbers, found \[0, 0\]"),
        ({"seeds": [True]}, "seeds: expected different whole numbers"),
        ({"factors": {}}, "factors: expected at least one factor"),
        ({"factors": {"kind": {"causal": "attention=causal"}}}, r"factors.kind.causal: expected a list of texts"),
        ({"without": [{"kind": "units"}]}, "without: kind has no level units, expected one of causal, mmca, unit"),
        ({"claims": [{**PLAN["claims"][0], "against": "mmc"}]}, "claims, number 1: kind has no level mmc"),
        ({"claims": [{**PLAN["claims"][0], "factor": "kinds"}]}, "claims, number 1: unknown factor kinds"),
        ({"claims": [{**PLAN["claims"][0], "expect": "equal"}]}, "expect must be one of better, worse, level"),
        ({"claims": [{**PLAN["claims"][1], "margin": 0}]}, "margin must be above 0"),
        ({"claims": [{**PLAN["claims"][2], "where": {"kind": "unit"}}]}, "claims, number 1: no two arms differ"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_its_field(change, words):
    with pytest.raises(ValueError, match=words):
        plan_of({**PLAN, **change})


def test_a_plan_that_lacks_a_field_is_refused():
    with pytest.raises(ValueError, match="the plan lacks seeds, title"):
        plan_of({name: value for name, value in PLAN.items() if name not in ("title", "seeds")})
