"""The lookup step of serving in C++, a backend of Triton: optional, built by `make native` with g++ alone.

`feed_hps.cpp` speaks with Triton (whose API it declares itself, in `triton_api.h`), `table.h` reads tables, and
`library` builds and finds what they become. Answers and errors are those of the Python step, bit for bit and word for
word (docs/contracts/lookup.md).
"""
