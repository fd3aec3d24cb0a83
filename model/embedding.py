"""What is looked up for each byte: its own embedding, those of n-grams, and those of earlier matches."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.generation.cache import Cache
from model.matches import find_matches
from model.ngrams import ngram_buckets
from model.typed import TypedModuleList


class ByteEmbedding(nn.Module):
    """Bytes (b n) to embeddings (b n d), the sum of

    - the embedding of the byte,
    - an embedding of each n-gram that ends at it, from a hash table for each length (BLT, arXiv 2412.09871),
    - an embedding of each byte that followed the same context earlier (a match model, see model/matches.py).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_tokens = config.num_tokens
        self.ngrams = config.ngrams
        self.ngram_buckets = config.ngram_buckets
        self.matches = config.matches
        self.word_matches = config.word_matches
        self.matches_per_context = config.matches_per_context
        dim = config.embedding_dim

        self.byte_emb = nn.Embedding(config.num_tokens, dim)
        self.ngram_embs = TypedModuleList(nn.Embedding(config.ngram_buckets, dim) for _ in config.ngrams)
        self.ngram_dropout = nn.Dropout1d(config.ngram_dropout)  # drops whole embeddings

        # One table holds those of all matches, one after another. In each, row 0 means no match, row 1 + i byte i.
        num_matches = config.matches_per_context * len(config.matches + config.word_matches)
        rows = num_matches * (1 + config.num_tokens)
        self.match_emb = nn.EmbeddingBag(rows, dim, mode="sum") if rows else None

        # Matches look as far back as the model's context. Generation keeps the bytes that any lookup needs.
        self.max_distance = config.seq_len
        self.history = max(config.seq_len if rows else 1, *config.ngrams, 1)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        n = ids.shape[1]
        x = self.byte_emb(ids)

        # Lookups need the bytes before these.
        with_history = ids
        if cache is not None:
            if cache.recent_ids is not None:
                with_history = torch.cat((cache.recent_ids, ids), dim=1)
            cache.recent_ids = with_history[:, -self.history :]

        buckets = ngram_buckets(with_history, self.ngrams, self.ngram_buckets, n)
        for embedding, rows in zip(self.ngram_embs, buckets, strict=True):
            x = x + self.ngram_dropout(embedding(rows))
        if self.match_emb is not None:
            x = x + self.embed_matches(self.match_emb, with_history, n, cache)
        return x

    def embed_matches(self, match_emb: nn.EmbeddingBag, ids: Tensor, n: int, cache: Cache | None) -> Tensor:
        """The sum of the embeddings of all matches of the last n of ids: (b n d)."""
        max_distance: int | Tensor = self.max_distance
        if cache is not None and not cache.is_empty:  # `make_static` pads the history
            max_distance = torch.as_tensor(cache.offset + n).clamp(max=self.max_distance)
        found = find_matches(ids, self.matches, self.word_matches, self.matches_per_context, max_distance, n)

        table_starts = torch.arange(found.shape[-1], device=ids.device) * (1 + self.num_tokens)
        rows = found + table_starts
        return match_emb(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
