// The passes by element type; each is compiled in a file of its own.
#pragma once

#include "hashed_linear/launch.cuh"

#define RDK_PASSES(instantiate, T)                                                                                     \
  instantiate template Path product<T, Forward>(const Strided<T>&, const T*, int64_t, const Map&, const Output<T>&,    \
                                                bool, Workspace&, const Device&);                                      \
  instantiate template Path product<T, InputGrad>(const Strided<T>&, const T*, int64_t, const Map&, const Output<T>&,  \
                                                  bool, Workspace&, const Device&);                                    \
  instantiate template Path bank_grad<T>(const Strided<T>&, const Strided<T>&, bool, const Map&, const BankOutput<T>&, \
                                         bool, Workspace&, const Device&);
