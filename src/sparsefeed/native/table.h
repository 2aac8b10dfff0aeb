// A table of embedding rows, memory-mapped: what sparsefeed.models.store is in Python, equal to it bit for bit
// (docs/contracts/tables.md). Nothing here knows of Triton.
//
// Every size that a file claims is held against the file's true size before it is mapped, and every key against the
// table before a row is read; after that the decoders check nothing.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sparsefeed {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "table files are little endian");

using Byte = unsigned char;

inline uint64_t product(uint64_t a, uint64_t b, const std::string& what) {
  uint64_t result;
  if (__builtin_mul_overflow(a, b, &result)) throw std::runtime_error(what + ": too large");
  return result;
}

template <class T>
inline T load(const Byte* bytes, uint64_t index) {  // from any address: tensors of requests need not be aligned
  T value;
  std::memcpy(&value, bytes + index * sizeof(T), sizeof(T));
  return value;
}

// A .npy file mapped read-only, so that all processes that map it share its pages.
class ArrayFile {
 public:
  ArrayFile(std::string path, const char* descr, uint64_t item_bytes) : path_(std::move(path)) {
    const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw wrong(std::strerror(errno));
    struct stat status;
    const bool known = fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0;
    if (known) {
      size_ = static_cast<uint64_t>(status.st_size);
      mapped_ = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
    }
    const int cause = errno;
    close(file);
    if (!known) throw wrong("an empty file, or none");
    if (mapped_ == MAP_FAILED) throw wrong(std::strerror(cause));
    try {
      read_header(descr, item_bytes);
    } catch (...) {
      munmap(mapped_, size_);
      throw;
    }
  }
  ArrayFile(const ArrayFile&) = delete;
  ArrayFile& operator=(const ArrayFile&) = delete;
  ~ArrayFile() { munmap(mapped_, size_); }

  const std::string& path() const { return path_; }
  const std::vector<uint64_t>& shape() const { return shape_; }
  const Byte* data() const { return static_cast<const Byte*>(mapped_) + header_bytes_; }

  std::runtime_error wrong(const std::string& cause) const {
    return std::runtime_error(path_ + ": " + cause + "; export the bundle again");
  }

 private:
  // Format 1.0 of .npy exactly as numpy writes it: magic, a length, a Python dict of three entries, spaces, "\n".
  void read_header(const char* descr, uint64_t item_bytes) {
    const Byte* bytes = static_cast<const Byte*>(mapped_);
    if (size_ < 10 || std::memcmp(bytes, "\x93NUMPY\x01\x00", 8) != 0) throw wrong("not a .npy file of format 1.0");
    header_bytes_ = 10 + load<uint16_t>(bytes + 8, 0);
    if (size_ < header_bytes_) throw wrong("ends within its header");
    const std::string header(reinterpret_cast<const char*>(bytes) + 10, header_bytes_ - 10);
    const std::string begin = std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': (";
    if (header.compare(0, begin.size(), begin) != 0) throw wrong("holds no C-ordered rows of " + std::string(descr));
    size_t at = begin.size();
    while (at < header.size() && header[at] != ')') {
      uint64_t length = 0;
      const size_t first = at;
      for (; at < header.size() && header[at] >= '0' && header[at] <= '9'; ++at) {
        length = product(length, 10, path_);
        if (__builtin_add_overflow(length, static_cast<uint64_t>(header[at] - '0'), &length)) throw wrong("too large");
      }
      if (at == first) throw wrong("its header has no shape");
      shape_.push_back(length);
      while (at < header.size() && (header[at] == ',' || header[at] == ' ')) ++at;
    }
    if (header.compare(at, 4, "), }") != 0) throw wrong("its header has no shape");
    uint64_t total = item_bytes;
    for (const uint64_t length : shape_) total = product(total, length, path_);
    if (total > size_ - header_bytes_) {
      throw wrong("holds " + std::to_string(size_ - header_bytes_) + " bytes of rows, its header says " +
                  std::to_string(total));
    }
  }

  std::string path_;
  void* mapped_ = MAP_FAILED;
  uint64_t size_ = 0;
  uint64_t header_bytes_ = 0;
  std::vector<uint64_t> shape_;
};

// How rows are stored: the decoder of each must give numba's bits (sparsefeed/models/store/gather.py), so the compiler
// may neither fuse a product with a sum nor reorder anything.
struct Fp32 {
  static constexpr const char* descr = "<f4";
  static constexpr uint64_t item_bytes = 4, tail_items = 0;
  static void decode(const Byte* __restrict row, float* __restrict out, uint64_t dim) {
    std::memcpy(out, row, dim * sizeof(float));
  }
};

struct Fp16 {
  static constexpr const char* descr = "<f2";
  static constexpr uint64_t item_bytes = 2, tail_items = 0;
  // Shifted into place, an fp16 is an fp32 whose exponent is too small by 127 - 15; the product mends it exactly.
  [[gnu::always_inline]] static void decode(const Byte* __restrict row, float* __restrict out, uint64_t dim) {
    for (uint64_t j = 0; j < dim; ++j) {
      const uint32_t half = load<uint16_t>(row, j);
      const uint32_t bits = (half & 0x7FFFu) << 13 | (half & 0x8000u) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      out[j] = value * 0x1p112f;
    }
  }
};

struct Int8 {  // fbgemm's fused row: dim bytes, float32 scale, float32 bias
  static constexpr const char* descr = "|u1";
  static constexpr uint64_t item_bytes = 1, tail_items = 8;
  [[gnu::always_inline]] static void decode(const Byte* __restrict row, float* __restrict out, uint64_t dim) {
    const float scale = load<float>(row + dim, 0), bias = load<float>(row + dim, 1);
    for (uint64_t j = 0; j < dim; ++j) out[j] = static_cast<float>(row[j]) * scale + bias;
  }
};

// Where the rows of a table lie. `words` has a pair per 64 rows: which of them the overlay holds, and how many it
// holds of all rows before, so one memory access finds a row; empty without an overlay.
struct Rows {
  const Byte* base = nullptr;
  const Byte* overlay = nullptr;
  uint64_t num_base = 0;
  uint64_t dim = 0;
  uint64_t row_bytes = 0;
  std::vector<std::pair<uint64_t, uint64_t>> words;
};

constexpr uint64_t kRowsAhead = 12;  // asked for before they are needed: about one DRAM latency of work
constexpr uint64_t kLineBytes = 64;

template <class Format>
[[gnu::always_inline]] inline void gather_as(const Rows& rows, const Byte* keys, uint64_t num_keys, float* out) {
  const bool overlaid = !rows.words.empty();
  for (uint64_t i = 0; i < num_keys; ++i, out += rows.dim) {
    if (i + kRowsAhead < num_keys) {
      const uint64_t later = load<uint64_t>(keys, i + kRowsAhead);
      if (overlaid) __builtin_prefetch(&rows.words[later / 64]);
      if (later < rows.num_base) {
        const Byte* row = rows.base + later * rows.row_bytes;
        for (uint64_t at = 0; at < rows.row_bytes; at += kLineBytes) __builtin_prefetch(row + at);
        __builtin_prefetch(row + rows.row_bytes - 1);
      }
    }
    const uint64_t key = load<uint64_t>(keys, i);
    if (overlaid) {
      const auto& [bits, before] = rows.words[key / 64];
      const uint64_t bit = uint64_t{1} << key % 64;
      if (bits & bit) {
        const uint64_t rank = before + static_cast<uint64_t>(__builtin_popcountll(bits & (bit - 1)));
        Format::decode(rows.overlay + rank * rows.row_bytes, out, rows.dim);
        continue;
      }
    }
    if (key < rows.num_base) {
      Format::decode(rows.base + key * rows.row_bytes, out, rows.dim);
    } else {
      std::memset(out, 0, rows.dim * sizeof(float));  // in neither: zero
    }
  }
}

// One library for every x86 machine: the loader picks the widest that the processor has. None of these has
// fused multiply-add, and contraction is off besides.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define SPARSEFEED_WIDEST __attribute__((target_clones("avx2", "default")))
#else
#define SPARSEFEED_WIDEST
#endif

using Gather = void (*)(const Rows&, const Byte*, uint64_t, float*);

SPARSEFEED_WIDEST void gather_fp32(const Rows& rows, const Byte* keys, uint64_t num_keys, float* out) {
  gather_as<Fp32>(rows, keys, num_keys, out);
}
SPARSEFEED_WIDEST void gather_fp16(const Rows& rows, const Byte* keys, uint64_t num_keys, float* out) {
  gather_as<Fp16>(rows, keys, num_keys, out);
}
SPARSEFEED_WIDEST void gather_int8(const Rows& rows, const Byte* keys, uint64_t num_keys, float* out) {
  gather_as<Int8>(rows, keys, num_keys, out);
}

// What an export says of a table; the files must agree.
struct TableSaid {
  std::string name;
  uint64_t dim = 0;
  uint64_t rows = 0;  // capacity_rows: every key is smaller
  std::string row_format;
  uint64_t overlay_rows = 0;
};

class Table {
 public:
  // Throws std::runtime_error naming the file that is not what `said` says.
  Table(const std::string& folder, const TableSaid& said) : name_(said.name), num_rows_(said.rows) {
    if (said.row_format == "fp32") {
      open_as<Fp32>(folder, said, gather_fp32);
    } else if (said.row_format == "fp16") {
      open_as<Fp16>(folder, said, gather_fp16);
    } else if (said.row_format == "int8") {
      open_as<Int8>(folder, said, gather_int8);
    } else {
      throw std::runtime_error("table \"" + name_ + "\": got row_format " + said.row_format +
                               "; allowed: fp32, fp16, int8");
    }
  }

  const std::string& name() const { return name_; }
  uint64_t num_rows() const { return num_rows_; }
  uint64_t dim() const { return rows_.dim; }

  // Index of the first int64 key that is outside [0, num_rows), or num_keys.
  uint64_t first_outside(const Byte* keys, uint64_t num_keys) const {
    uint64_t i = 0;
    while (i < num_keys && load<uint64_t>(keys, i) < num_rows_) ++i;  // a negative key is a large one
    return i;
  }

  // Decodes num_keys keys, all of them in range, into num_keys * dim floats.
  void lookup(const Byte* keys, uint64_t num_keys, float* out) const { gather_(rows_, keys, num_keys, out); }

 private:
  template <class Format>
  void open_as(const std::string& folder, const TableSaid& said, Gather gather) {
    const std::string path = folder + "/" + said.name;
    const uint64_t width = said.dim + Format::tail_items;
    const ArrayFile& base = open(path + ".npy", Format::descr, Format::item_bytes);
    const auto& shape = base.shape();
    if (said.dim == 0 || shape.size() != 2 || shape[1] != width || shape[0] < 1 || shape[0] > said.rows) {
      throw base.wrong("not 1 to " + std::to_string(said.rows) + " rows of " + std::to_string(width) + " elements");
    }
    rows_ = {base.data(), nullptr, shape[0], said.dim, width * Format::item_bytes, {}};
    gather_ = gather;
    if (said.overlay_rows == 0) return;
    const ArrayFile& places = open(path + ".overlay_rows.npy", "<i8", 8);
    const ArrayFile& overlay = open(path + ".overlay.npy", Format::descr, Format::item_bytes);
    if (places.shape() != std::vector<uint64_t>{said.overlay_rows} ||
        overlay.shape() != std::vector<uint64_t>{said.overlay_rows, width}) {
      throw overlay.wrong("not an overlay of " + std::to_string(said.overlay_rows) + " rows");
    }
    rows_.overlay = overlay.data();
    rows_.words.resize(said.rows / 64 + 1);
    uint64_t last = 0;
    for (uint64_t i = 0; i < said.overlay_rows; ++i) {
      const uint64_t row = load<uint64_t>(places.data(), i);
      if (row <= last || row >= said.rows) throw places.wrong("its rows do not ascend within the table");
      rows_.words[row / 64].first |= uint64_t{1} << row % 64;
      last = row;
    }
    uint64_t before = 0;
    for (auto& word : rows_.words) {
      word.second = before;
      before += static_cast<uint64_t>(__builtin_popcountll(word.first));
    }
  }

  const ArrayFile& open(const std::string& path, const char* descr, uint64_t item_bytes) {
    files_.push_back(std::make_unique<ArrayFile>(path, descr, item_bytes));
    return *files_.back();
  }

  std::string name_;
  uint64_t num_rows_;
  Rows rows_;
  Gather gather_ = nullptr;
  std::vector<std::unique_ptr<ArrayFile>> files_;
};

}  // namespace sparsefeed
