// Source lines of return addresses, from the debug information, by binutils' addr2line.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace simt::trace {

struct Line {
  std::string file;
  int line = 0;
};

inline std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// Whether a frame is the emulation's or a library's, inlined into the kernel.
inline bool foreign(const std::string& path) {
  for (const char* part : {"simt/device.h", "simt/intrinsics.h", "simt/runtime.h", "/cuda_", "/include/c++/", "??"}) {
    if (path.find(part) != std::string::npos) return true;
  }
  return false;
}

inline std::string output_of(const std::string& command) {
  std::string text;
  std::array<char, 4096> part;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return text;
  while (size_t n = fread(part.data(), 1, part.size(), pipe)) text.append(part.data(), n);
  pclose(pipe);
  return text;
}

inline std::map<uintptr_t, Line> source_lines(const std::vector<uintptr_t>& pcs) {
  std::map<uintptr_t, Line> lines;
  std::map<std::string, std::vector<std::pair<uintptr_t, uintptr_t>>> by_file;  // offset in the file, pc
  for (uintptr_t pc : pcs) {
    Dl_info info{};
    lines[pc] = {"?", 0};
    if (!dladdr(reinterpret_cast<void*>(pc), &info) || !info.dli_fname) continue;
    char self[4096];
    std::string file = info.dli_fname;
    if (::access(file.c_str(), R_OK)) {  // the program itself, by a name that was looked up in PATH
      const ssize_t n = readlink("/proc/self/exe", self, sizeof self);
      file.assign(self, n > 0 ? size_t(n) : 0);
    }
    by_file[file].push_back({pc - 1 - uintptr_t(info.dli_fbase), pc});  // the call, not what follows it
  }
  for (const auto& [file, places] : by_file) {
    std::ostringstream command;
    command << "addr2line -a -i -e '" << file << "'" << std::hex;
    for (const auto& [offset, pc] : places) command << " 0x" << offset;
    std::istringstream text(output_of(command.str()));
    size_t at = size_t(-1);
    for (std::string frame; std::getline(text, frame);) {  // per address: itself, then its frames from the innermost
      if (frame.starts_with("0x")) {
        ++at;
      } else if (at < places.size() && !lines[places[at].second].line && !foreign(frame)) {
        const size_t colon = frame.rfind(':');
        lines[places[at].second] = {base_name(frame.substr(0, colon)), std::atoi(frame.c_str() + colon + 1)};
      }
    }
  }
  return lines;
}

}  // namespace simt::trace
