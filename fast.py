"""Faster sampling on a GPU, for --fast: a decoding step as one CUDA graph over a static cache.

A script runs without this file. `sample` has the signature of the scripts' own and gives the same
tokens; on a CPU it takes the same steps without a graph. A graph reads the weights in their place.
"""

import math
from contextlib import contextmanager
from types import MethodType

import torch
import transformers
from torch.func import functional_call
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers.cache_utils import StaticLayer

from common import fail, pad


def grouped_attention(module, query, key, value, attention_mask=None, scaling=None, **options):
    """(N, H, 1, D) to (N, 1, H, D). transformers would copy keys and values that heads share."""
    options = {"scale": scaling, "enable_gqa": True}
    out = scaled_dot_product_attention(query, key, value, attention_mask, **options)
    return out.transpose(1, 2).contiguous(), None


def one_kernel_norm(norm, states: torch.Tensor) -> torch.Tensor:
    """Llama's normalisation in one kernel instead of eight."""
    return rms_norm(states, norm.weight.shape, norm.weight.to(states), norm.variance_epsilon)


@contextmanager
def quick(model):
    """Within it a model attends and normalises in fewer kernels."""
    transformers.AttentionInterface.register("grouped", grouped_attention)
    norms = [part for part in model.modules() if hasattr(part, "variance_epsilon")]  # as Llama's
    for norm in norms:
        norm.forward = MethodType(one_kernel_norm, norm)
    attention, model.config._attn_implementation = model.config._attn_implementation, "grouped"
    yield
    model.config._attn_implementation = attention
    for norm in norms:
        del norm.forward


def choose(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(N, 1) tokens, as the scripts' `sample` chooses them: the inverse CDF at (N, 1) uniforms."""
    cdf = logits.float().softmax(1).cumsum(1)
    tokens = torch.searchsorted(cdf, uniforms * cdf[:, -1:], right=True)
    return tokens.clamp(max=cdf.shape[1] - 1)


class Layer(StaticLayer):
    """Keys and values in attention's own type: autocast would cast all of them at every token."""

    def update(self, keys, values, *args, **options):
        return super().update(keys.to(self.dtype), values.to(self.dtype), *args, **options)


class Step:
    """One more token for each of N responses, in memory that stays where it is."""

    def __init__(self, model, rows: int, width: int, length: int, prompts):
        """Room for `rows` responses of `length` tokens behind `width` columns. prompts: a cache."""
        device, size = model.device, -(-(width + length) // 8) * 8  # other masks would be copied
        self.model, self.width, self.graph = model, width, None
        self.autocast = torch.is_autocast_enabled(device.type)
        self.weights = {}  # what autocast would cast at every token is cast once a batch
        for name, part in model.named_modules():
            if self.autocast and isinstance(part, torch.nn.Linear):
                self.weights[f"{name}.weight"] = part.weight
        kind = torch.get_autocast_dtype(device.type)
        self.cast = {name: weight.detach().to(kind) for name, weight in self.weights.items()}
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=size)
        if {type(layer) for layer in self.cache.layers} != {StaticLayer}:
            fail(f"--fast: {model.config.model_type} has layers of other kinds; leave it out")
        self.cache.layers = [Layer(size) for _ in self.cache.layers]
        dtype = kind if self.autocast else model.dtype
        for layer, (keys, values, *_) in zip(self.cache.layers, prompts):
            layer.lazy_initialization(keys.to(dtype), values.to(dtype))
        with device:
            self.column, self.t = torch.zeros(2, 1, dtype=torch.long)  # of the memory; of responses
            self.positions = torch.zeros(rows, 1, dtype=torch.long)
            self.tokens = torch.zeros(rows, length, dtype=torch.long)
            self.uniforms = torch.zeros(rows, length)
            self.mask = torch.full((rows, size), -math.inf, dtype=dtype)  # 0 at a token
        if device.type == "cuda" and length > 1:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.autocast("cuda", enabled=self.autocast, cache_enabled=False):
                with torch.cuda.stream(stream):
                    self.take()  # warms up
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=stream):
                    self.take()

    def take(self) -> None:
        """The token after token t of every row; t is counted where a graph can read it."""
        self.mask.index_fill_(1, self.column, 0.0)
        inputs = {"attention_mask": self.mask[:, None, None], "position_ids": self.positions}
        inputs |= {"past_key_values": self.cache, "logits_to_keep": 1}
        with quick(self.model):
            ids = self.tokens.index_select(1, self.t)
            out = functional_call(self.model, self.cast, ids, inputs, tie_weights=False)
        for count in (self.column, self.positions, self.t):
            count.add_(1)
        chosen = choose(out.logits[:, -1], self.uniforms.index_select(1, self.t))
        self.tokens.index_copy_(1, self.t, chosen)

    def respond(self, prompts, mask, uniforms, first, ends: list[int]) -> list:
        """N responses. prompts: their cache. mask: (N, P). first: (N, 1) tokens, sampled before."""
        begin = self.width - mask.shape[1]
        for layer, (keys, values, *_) in zip(self.cache.layers, prompts):
            layer.keys[:, :, begin : self.width] = keys
            layer.values[:, :, begin : self.width] = values
            layer.cumulative_length.fill_(self.width)
        for name, weight in self.weights.items():
            self.cast[name].copy_(weight)
        self.column.fill_(self.width)
        self.t.zero_()
        self.mask.fill_(-math.inf)
        self.mask[:, begin : self.width].masked_fill_(mask.bool(), 0.0)
        self.positions.copy_(mask.sum(1, keepdim=True))
        self.uniforms.copy_(uniforms)
        self.tokens[:, :1] = first
        ends = torch.tensor(ends, device=first.device)
        for t in range(1, self.tokens.shape[1]):
            self.graph.replay() if self.graph else self.take()
            if t % 16 == 0 and torch.isin(self.tokens[:, : t + 1], ends).any(1).all():
                break  # looking waits for the GPU, so it looks seldom
        lengths = 1 + (~torch.isin(self.tokens, ends)).cumprod(1).sum(1)  # to the first end
        return [row[:length] for row, length in zip(self.tokens.tolist(), lengths.tolist())]


@torch.no_grad()
def sample(model, prompts: list[list[int]], uniforms: torch.Tensor, ends: list[int]):
    """The scripts' `sample`, with their arguments and results."""
    ids, mask = (tensor.to(model.device) for tensor in pad(prompts, "left"))  # (N, P)
    positions, uniforms = (mask.cumsum(1) - 1).clamp(min=0), uniforms.to(model.device)
    cache = transformers.DynamicCache(config=model.config)
    inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    first = choose(model(ids, **inputs, logits_to_keep=1).logits[:, -1], uniforms[:, :1])
    width = -(-ids.shape[1] // 64) * 64  # a graph serves prompts of many lengths
    key = *uniforms.shape, width, torch.is_autocast_enabled(model.device.type)
    steps = model.__dict__.setdefault("recorded_steps", {})
    if key not in steps:
        if len(steps) > 3:  # training, evaluation, and its last batch
            steps.clear()
        steps[key] = Step(model, len(uniforms), width, uniforms.shape[1], cache)
    return steps[key].respond(cache, mask, uniforms, first, ends)
