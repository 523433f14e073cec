"""What every part uses: errors told in words, atomic files, background work."""
