"""`attn_implementation="fcgen"`: small models of each style with random weights give eager's logits and tokens."""

from __future__ import annotations

import functools
import logging

import pytest

from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
T = pytest.importorskip("transformers", minversion="4.56", reason="needs transformers: pip install transformers")
from fcgen.integrations import transformers as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = dict(vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
             max_position_embeddings=64)
MIXED = dict(sliding_window=6, layer_types=["sliding_attention", "full_attention"])
MODELS = {
    "Llama": {}, "Mistral": {"sliding_window": 6}, "Gemma2": {**MIXED, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    "GptOss": {**MIXED, "num_local_experts": 2, "num_experts_per_tok": 1}, "Qwen2": {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 112}}


@functools.lru_cache
def model(name):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    ours.register()
    torch.manual_seed(1)
    config = getattr(T, f"{name}Config")(**{**SMALL, **MODELS[name]})
    return random(getattr(T, f"{name}ForCausalLM")(config))


def random(made):
    made = made.eval().half()
    for name, p in made.named_parameters():
        p.data.normal_(0, 1.0 if "sink" in name else 0.15) if p.dim() > 1 or "sink" in name else None
    return made


def both(m, call):
    """What a call gives with eager attention and with fcgen's."""
    out = []
    with torch.no_grad():
        for implementation in ("eager", "fcgen"):
            m.set_attn_implementation(implementation)
            out.append(call())
    return out


IDS = torch.randint(0, 97, (2, 13), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[0, :4] = 0


@pytest.mark.parametrize("batch", ["plain", "padded left", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(kernels, name, batch):
    m = model(name)
    named = {"plain": {}, "padded left": {"attention_mask": PADDED}, "packed": {"position_ids": torch.cat([torch.arange(5), torch.arange(8)])[None]}}[batch]
    ids = IDS[:1] if batch == "packed" else IDS
    want, got = both(m, lambda: m(ids, **named).logits.float())
    there = PADDED.bool() if batch == "padded left" else torch.ones_like(ids).bool()
    assert len(kernels) == 2 and (got - want)[there].abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GptOss"])
def test_a_step_of_training_has_the_gradients_of_eager_attention(kernels, name, monkeypatch):
    """Of every weight, sinks included, with padding, and through checkpoints of layers."""
    monkeypatch.setattr("fcgen.attend.training._fits", lambda *_: True)
    m = model(name).train()
    labels = torch.where(PADDED.bool(), IDS, -100)
    labels[0, 4] = -100  # which padding would tell
    found = []
    for implementation, again in (("eager", False), ("fcgen", False), ("fcgen", True)):
        m.set_attn_implementation(implementation)
        m.gradient_checkpointing_enable({"use_reentrant": False}) if again else m.gradient_checkpointing_disable()
        m.zero_grad()
        m(IDS, attention_mask=PADDED, labels=labels, use_cache=False).loss.backward()
        found.append({n: p.grad.float().clone() for n, p in m.named_parameters()})
    want, got, twice = found
    m.gradient_checkpointing_disable()
    m.eval().zero_grad()
    assert "backward" in [p.name for p in kernels] and ("self_attn.sinks" in " ".join(got)) == (name == "GptOss")
    for n, g in want.items():
        assert (got[n] - g).abs().max() < 0.03 * g.abs().max() + 1e-4, n
        assert (twice[n] - g).abs().max() < 0.03 * g.abs().max() + 1e-4, n


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GptOss"])
def test_greedy_tokens(kernels, name, cache):
    m = model(name)
    want, got = both(m, lambda: m.generate(IDS, attention_mask=PADDED, max_new_tokens=6, do_sample=False, pad_token_id=0, disable_compile=True,
                                           cache_implementation=cache))
    assert torch.equal(got, want) and kernels


def test_an_encoder_of_pictures_and_a_model_of_speech(kernels):
    ours.register()
    torch.manual_seed(1)
    vit = random(T.ViTModel(T.ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)))
    pictures = torch.randn(2, 3, 32, 32).half()
    want, got = both(vit, lambda: vit(pictures).last_hidden_state.float())
    assert len(kernels) == 1 and (got - want).abs().max() < 0.02 * want.abs().max()
    config = T.WhisperConfig(vocab_size=97, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
                             decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20, max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                             decoder_start_token_id=1)
    whisper = random(T.WhisperForConditionalGeneration(config))
    sound, words = torch.randn(2, 8, 40).half(), torch.randint(3, 97, (2, 7))
    want, got = both(whisper, lambda: whisper(input_features=sound, decoder_input_ids=words).logits.float())
    assert len(kernels) == 4 and (got - want).abs().max() < 0.02 * want.abs().max()


def test_causal_masks_and_windows_stay_positions():
    theirs = T.masking_utils
    sliding = theirs.sliding_window_causal_mask_function(6)
    facts = dict(batch_size=2, q_length=3, kv_length=10, q_offset=7, kv_offset=0)
    plain, window = ours.mask(**facts), ours.mask(**facts, mask_function=sliding, local_size=6)
    assert (plain.shift, plain.left, plain.keys) == (7, -1, None) and (window.shift, window.left) == (7, 5) and plain.shape == (2, 1, 3, 10)
    padded = ours.mask(**facts, attention_mask=torch.tensor([[0] * 4 + [1] * 6, [1] * 10]))
    assert padded.keys.shape == (2, 1, 1, 10) and not padded.keys[0, 0, 0, 3] and ours.mask(**facts, attention_mask=torch.ones(2, 10)).keys is None
    for other in ({"mask_function": theirs.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int)), "local_size": 4}, {"allow_is_causal_skip": False},
                  {"q_offset": torch.tensor(7)}):
        assert ours.mask(**{**facts, **other}).dtype == torch.bool


def test_what_decides_a_result_is_honoured_or_refused(kernels):
    q = torch.randn(1, 4, 9, 16).half()
    module = torch.nn.Module()
    for named, said in (({"output_attentions": True}, "attention weights"), ({"head_mask": q}, "head_mask")):
        with pytest.raises(FcError, match=said):
            ours.attention(module, q, q, q, None, **named)
    with pytest.raises(FcError, match="none that this attention knows"):
        ours.attention(module, q, q, q, torch.ones(1, 9))
    bias = torch.randn(1, 4, 9, 9)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    out = ours.attention(module, q, q, q, seen, position_bias=bias.half())[0].transpose(1, 2)
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), q.double(), q.double(), attn_mask=torch.where(seen, bias.half().double(), -torch.inf))
    assert (out - want).abs().max() < 4e-3


def test_nothing_is_registered_by_importing():
    import importlib

    names = ours.AttentionInterface._global_mapping, ours.AttentionMaskInterface._global_mapping
    before = [dict(n) for n in names]
    importlib.reload(ours)
    assert [dict(n) for n in names] == before
    ours.register("another")
    assert all(n.pop("another") for n in names)
