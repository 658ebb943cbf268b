from transformers import CLIPTokenizer

from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer

CORPUS = ["put the red cube on the blue pad", "return the red cube"]


def test_known_words_are_one_token_and_unknown_words_survive(tmp_path):
    tokenizer = build_tokenizer(CORPUS * 3, vocab_size=700, max_length=16)
    assert len(tokenizer("put the red cube")["input_ids"]) == 4 + 2
    unknown = tokenizer("grasp a teapot!")["input_ids"]
    assert tokenizer.unk_token_id not in unknown[1:-1]
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("grasp a teapot!")["input_ids"] == unknown
    assert again.model_max_length == 16


def test_encoder_fits_the_tokenizer():
    tokenizer = build_tokenizer(CORPUS, vocab_size=700, max_length=16)
    encoder = build_text_encoder(tokenizer, hidden_size=16, num_layers=1, num_heads=2)
    tokens = tokenizer(CORPUS, padding="max_length", return_tensors="pt")
    assert encoder(tokens.input_ids).last_hidden_state.shape == (2, 16, 16)
