"""Tiny random Qwen3 directories, as transformers saves them."""

_TEXT = "yes no nurse welder night shift ohio remote senior clerk search posting say person want . , :"
WORDS = _TEXT.split()
SPECIALS = ["<|im_start|>", "<|im_end|>"]


def make_directory(path, *, words=WORDS, vocabulary=64, seed=0, unknown="<unk>", architecture="Qwen3"):
    """Whole words and two special tokens; everything else is the unknown token, or an error where there is none."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [*([unknown] if unknown else []), *words, *SPECIALS]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIALS)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown).save_pretrained(path)
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2_048,
    }
    if architecture == "Qwen3":
        sizes["head_dim"] = 16  # the least that kernels take
    config = getattr(transformers, f"{architecture}Config")(**sizes)
    getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(path)
    return path
