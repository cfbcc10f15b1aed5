//! The operator's door: `/livez`, `/readyz` and `/metrics` on a loopback port.
