"""PEFT layers that the user put into a tower with peft: LoRA, IA3, VeRA, LN-tuning and their kin.

They are part of the tower, so a plain call of the tower runs them too. To an encoder they are
what is trained there: they keep their gradients and their dropout while all else is frozen, and
they are counted, saved, loaded and merged with the adapter. So are the virtual tokens that peft
puts before the texts of a tower. `parts` finds all that, `narrow` reads a config of peft that was
made for a larger model, `trial` sees whether layers take part, `names` names tensors beside them,
`changes` changes towers, `aside` keeps layers while others act.
"""

from bridger.tower_peft.aside import LayersAside
from bridger.tower_peft.changes import (
    Parameters,
    inject_peft,
    merge_peft,
    take_out_peft,
    wrap_prompts,
)
from bridger.tower_peft.names import own_modules, own_tensors, place_now
from bridger.tower_peft.parts import (
    PeftPart,
    cast_towers,
    describe_peft,
    find_peft,
    tuned_modules,
    tuned_parameters,
)
from bridger.tower_peft.trial import refuse_unused, running_layers, trial_inputs

__all__ = [
    "LayersAside",
    "Parameters",
    "PeftPart",
    "cast_towers",
    "describe_peft",
    "find_peft",
    "inject_peft",
    "merge_peft",
    "own_modules",
    "own_tensors",
    "place_now",
    "refuse_unused",
    "running_layers",
    "take_out_peft",
    "trial_inputs",
    "tuned_modules",
    "tuned_parameters",
    "wrap_prompts",
]
