"""How good a candidate is and how long it takes: what a search asks for, and what is reported.

`calibration` reads text and images; `proxies` judge candidates on it; `estimates` say something
about every unit at once; `profile` measures latency tables; `executor` answers requests in this
process. `heldout` measures finished models and shares no code with the proxies, so that what chose
a winner does not judge it.

Interface: `evocompress.evaluation.proxies.base.Proxy`,
`evocompress.evaluation.estimates.base.ESTIMATE` entries (one file and one line each, see
docs/proxy.md), `evocompress.evaluation.heldout.heldout_quality`.

Imported by: `api`, `cli`, `distributed`, `pipeline`, `testing`.
"""
