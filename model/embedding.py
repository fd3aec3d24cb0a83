"""What is looked up for each byte: its own embedding, those of n-grams, and those of earlier matches."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.generation.cache import Cache
from model.match_index import index_text
from model.matches import MatchModel
from model.ngrams import ngram_buckets
from model.tables import HashTables, Tables

# Up to this share of the match model's reach, it is faster to add bytes to an index than to sort contexts.
INDEXED_SHARE = 1 / 8


class ByteEmbedding(nn.Module):
    """Bytes (b n) to embeddings (b n d), the sum of

    - the embedding of the byte,
    - an embedding of each n-gram that ends at it, from a hash table for each length (BLT, arXiv 2412.09871),
    - an embedding of each byte that followed the same context earlier (a match model, see model/matches.py).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.ngrams = config.ngrams
        num_matches = config.matches_per_context * len(config.matches + config.word_matches)
        dim = config.embedding_dim

        self.byte_emb = nn.Embedding(config.num_tokens, dim)
        self.ngram_emb = HashTables(len(config.ngrams), config.ngram_buckets, dim) if config.ngrams else None
        # Row 0 means no match, row 1 + i byte i.
        self.match_emb = Tables(num_matches, 1 + config.num_tokens, dim) if num_matches else None
        self.ngram_dropout = nn.Dropout(config.ngram_dropout)

        self.match_model = MatchModel(config.matches, config.word_matches, config.matches_per_context, config.seq_len)
        self.history = max(config.ngrams, default=1) - 1  # bytes that n-grams need before the current one

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        n = ids.shape[1]
        x = self.byte_emb(ids)

        with_history = ids
        if cache is not None:
            past = ids.new_zeros(len(ids), self.history) if cache.recent_ids is None else cache.recent_ids
            with_history = torch.cat((past, ids), dim=1)
            cache.recent_ids = with_history[:, n:].clone()

        if self.ngram_emb is not None:
            buckets = ngram_buckets(with_history, self.ngrams, self.ngram_emb.rows, n)
            x = x + self.embed_ngrams(self.ngram_emb, buckets)
        if self.match_emb is not None:
            x = x + self.match_emb.sum_of_rows(self.find_matches(ids, cache))
        return x

    def embed_ngrams(self, ngram_emb: HashTables, buckets: Tensor) -> Tensor:
        """The sum of the embeddings of a byte's n-grams: their rows (b n ngrams) -> (b n d)."""
        if not self.training or self.ngram_dropout.p == 0:
            return ngram_emb.sum_of_rows(buckets)
        kept = torch.ones_like(buckets, dtype=ngram_emb.weight.dtype)
        return ngram_emb.sum_of_rows(buckets, self.ngram_dropout(kept))  # drops whole embeddings

    def find_matches(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """What the match model finds for each of ids (b n): (b n matches)."""
        if cache is None:
            return self.match_model(ids)
        if cache.is_empty:
            cache.matches = index_text(self.match_model, ids)
            return self.match_model(ids)
        if ids.shape[1] > max(1, INDEXED_SHARE * self.match_model.max_distance):
            return self.find_matches_of_many(ids, cache)
        self.index_matches(cache)
        assert cache.matches is not None
        if cache.matches.found is not None:  # a recorded step
            return cache.matches.found
        return cache.matches.add(self.match_model, ids, cache.length)

    def find_matches_of_many(self, ids: Tensor, cache: Cache) -> Tensor:
        """What `find_matches` finds for many bytes after those in a cache, which is left without an index."""
        before = cache.to_index
        if cache.matches is not None:
            before = cache.matches.latest_bytes(cache.length).to(ids.device)
        assert before is not None
        text = torch.cat((before, ids), dim=1)
        cache.matches = None
        cache.to_index = text[:, -self.match_model.max_distance :]
        return self.match_model(text)[:, -ids.shape[1] :]

    def index_matches(self, cache: Cache) -> None:
        """Index the text in a cache, if it is not indexed yet."""
        if cache.to_index is not None:
            first = cache.length - cache.to_index.shape[1]
            cache.matches = index_text(self.match_model, cache.to_index, first)
            cache.to_index = None
