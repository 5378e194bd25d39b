"""How processes train one network together: one alone, DDP, DeepSpeed ZeRO, FSDP."""
