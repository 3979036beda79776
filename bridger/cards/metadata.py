"""The metadata of a model card: what the Hub files an adapter under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bridger.cards.facts import Facts

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TAGS = ("bridger", "adapter", "parameter-efficient-fine-tuning", "vision-language")
DATA_SETS = {
    "refcoco": "jxu124/refcoco",
    "refcoco+": "jxu124/refcocoplus",
    "refcocog": "jxu124/refcocog",
}
"""Where data sets that recipes name are on the Hub."""


def metadata(facts: Facts) -> ModelCardData:
    """Return the metadata: library, base models, tasks, data, figures, licence."""
    from huggingface_hub import ModelCardData

    base_models = [origin.hub_id for origin in facts.origins if origin.hub_id]
    trained_on = () if facts.is_embedded else (facts.recipe or {}).get("datasets") or ()
    kinds = dict.fromkeys(head.registered.replace("_", "-") for head in facts.heads)
    adapts: dict[str, Any] = {"base_model_relation": "adapter"} if base_models else {}
    return ModelCardData(
        library_name="bridger",
        license=facts.licence,
        base_model=base_models or None,
        pipeline_tag=next(iter(facts.pipeline_tags), None),
        tags=list(dict.fromkeys([*TAGS, *kinds, *facts.pipeline_tags[1:]])),
        datasets=[DATA_SETS[name] for name in trained_on if name in DATA_SETS] or None,
        model_name=facts.name,
        eval_results=[found for record in facts.results for found in _evaluated(facts, record)]
        or None,
        ignore_metadata_errors=False,
        **adapts,
    )


def _evaluated(facts: Facts, record: Mapping[str, Any]) -> list[EvalResult]:
    """Return a record's metrics in percent, as the model index has them."""
    from huggingface_hub import EvalResult

    tags = {head.registered: head.pipeline_tag for head in facts.heads}
    name = record["dataset"]
    return [
        EvalResult(
            task_type=tags[record["task"]] or "other",
            task_name=record["task"].replace("_", " "),
            dataset_type=DATA_SETS.get(name, name),
            dataset_name=name,
            dataset_split=record["split"],
            # Otherwise first sentences and all of them would be the same entry.
            dataset_config=record.get("sentences"),
            metric_type=metric,
            metric_name=f"{metric}, percent",
            metric_value=round(100 * share, 2),
        )
        for metric, share in record["metrics"].items()
    ]
