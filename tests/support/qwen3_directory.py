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
        sizes["head_dim"] = 8
    config = getattr(transformers, f"{architecture}Config")(**sizes)
    getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(path)
    return path


def make_bytes_tokenizer(path, texts):
    """A byte-level BPE, as Qwen's is, trained on `texts`; `config.json` says its size."""
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *["yes", "no"] * 20], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"vocab_size": tokenizer.get_vocab_size()}))
    return path
