"""`python tests/in_double.py ipo_offline ARGUMENTS`: a script whose models compute in float64.

So the last digits can be compared. Of the script it needs the path alone: what transformers loads
is made float64, whoever asks for it, and its normalisation does not go through float32.
"""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

load = PreTrainedModel.from_pretrained.__func__


def load_in_double(cls, *args, **options):
    loaded = load(cls, *args, **options)
    if isinstance(loaded, tuple):  # output_loading_info=True
        return loaded[0].double(), *loaded[1:]
    return loaded.double()


def normalize(self, states):
    mean = states.pow(2).mean(-1, keepdim=True)
    return self.weight * (states * (mean + self.variance_epsilon).rsqrt())


script = Path(__file__).resolve().parent.parent / f"{sys.argv[1]}.py"
sys.argv = [str(script), *sys.argv[2:]]
sys.path.insert(0, str(script.parent))
with (
    patch.object(PreTrainedModel, "from_pretrained", classmethod(load_in_double)),
    patch.object(LlamaRMSNorm, "forward", normalize),
):
    runpy.run_path(str(script), run_name="__main__")
