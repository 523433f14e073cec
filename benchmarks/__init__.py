"""What the speed claims of docs/performance.md rest on; each module is a command."""
