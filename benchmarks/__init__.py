"""What the speed claims of docs/performance.md rest on; each module is a command."""

from smallgpt.cli.arguments import let_gpu_memory_grow

let_gpu_memory_grow()  # as every command does before it imports torch
