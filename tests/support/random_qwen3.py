"""Small random Qwen3 directories with every part of the architecture at work: for tests of weights and forwards."""

WORDS = ("yes", "no", "nurse", "welder", "night", "shift")
YES, NO = 1, 2  # their tokens; 0 is unknown


def random_qwen3(path, *, words=WORDS, seed=0, dtype=None, **changes):
    """`changes`: to the config of 2 layers, hidden 32, 4 heads over 2, vocabulary 64."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.WordLevel({w: at for at, w in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(path)
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "max_position_embeddings": 1_024,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**{**sizes, **changes}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # transformers begins with ones, which would hide a norm that is left out
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.3)
    model.to(dtype or torch.float32).save_pretrained(path)
    return path
