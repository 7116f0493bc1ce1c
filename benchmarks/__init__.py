"""What is measured: parity with the published code, rows, the embedded model."""
