// What a driver ran, how far off it was, and the fault that it was given.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>

namespace rdk {

struct Tally {
  int problems = 0, wrong = 0;
  double worst = 0;

  void error(double share) {  // of what is allowed
    if (std::isnan(share)) share = INFINITY;
    if (share > 1) ++wrong;
    worst = std::max(worst, share);
  }
  void expect(bool right) { error(right ? 0 : 2); }
};

inline std::map<std::string, Tally> tallies;
inline std::string fault;

// Prints every tally; how many were wrong.
inline int report(int lanes) {
  int wrong = 0;
  for (const auto& [name, tally] : tallies) {
    std::printf("%d lanes  %-14s  %3d problems  %d wrong  worst error %.3f of its bound\n", lanes, name.c_str(),
                tally.problems, tally.wrong, tally.worst);
    wrong += tally.wrong;
  }
  return wrong;
}

}  // namespace rdk
