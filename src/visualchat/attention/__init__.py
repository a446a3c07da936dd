"""Attention over text and images: one functional core, its implementations, and transformers' registries."""

from visualchat.attention.cross import GatedCrossAttention, add_cross_attention, remove_cross_attention
from visualchat.attention.functional import multimodal_attention
from visualchat.attention.kinds import KINDS, AttentionKind, EarlyLayers, Modality, attention_kind
from visualchat.attention.register import disable, enable, implementation_name

__all__ = [
    "KINDS",
    "AttentionKind",
    "EarlyLayers",
    "GatedCrossAttention",
    "Modality",
    "add_cross_attention",
    "attention_kind",
    "disable",
    "enable",
    "implementation_name",
    "multimodal_attention",
    "remove_cross_attention",
]
