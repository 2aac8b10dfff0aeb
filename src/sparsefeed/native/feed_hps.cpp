// feed_hps as a backend of Triton: keys to vectors, the words and bits of sparsefeed's Python step (LookupStep;
// docs/contracts/lookup.md), without its hop into another process.
//
// It runs in the server's own process, so nothing a request holds may end it: whatever goes wrong with one request is
// that request's error, and no exception leaves a function that Triton calls. Instances share one mapping of the
// tables. What is served stands in `<version>/tables.txt` of the model, written by `export`.

#include <charconv>
#include <chrono>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "meter.h"
#include "table.h"
#include "triton_api.h"

namespace sparsefeed {
namespace {

constexpr const char* kFormat = "sparsefeed feed_hps 1";  // first line of tables.txt
constexpr const char* kProbe = "sparsefeed-health";  // the id of requests that are not counted, as request.PROBE

// An error with a code of Triton's.
struct Failure : std::runtime_error {
  Failure(TRITONSERVER_Error_Code code, const std::string& message) : std::runtime_error(message), code(code) {}
  TRITONSERVER_Error_Code code;
};

// What the client must change, as a RequestError of the Python step.
Failure refused(const std::string& message) { return Failure(TRITONSERVER_ERROR_INVALID_ARG, message); }

void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const Failure failure(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  throw failure;
}

void ignore(TRITONSERVER_Error* error) {  // where nobody is left to tell
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

// The exception being handled, as Triton's error; to be called in a catch block.
TRITONSERVER_Error* error_of(const std::string& where) noexcept {
  try {
    try {
      throw;
    } catch (const Failure& failure) {
      return TRITONSERVER_ErrorNew(failure.code, (where + failure.what()).c_str());
    } catch (const std::exception& error) {
      return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, (where + error.what()).c_str());
    }
  } catch (...) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "feed_hps: out of memory");
  }
}

uint64_t now_ns() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
}

template <class Numbers>
std::string list_of(const Numbers& numbers) {  // as Python writes a list
  std::string text = "[";
  for (const auto number : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(number);
  return text + "]";
}

const char* numpy_name(TRITONSERVER_DataType type) {
  static const char* const names[] = {"invalid", "bool",  "uint8", "uint16",  "uint32",  "uint64",  "int8",    "int16",
                                      "int32",   "int64", "float16", "float32", "float64", "object", "bfloat16"};
  return type >= 0 && type < static_cast<int>(std::size(names)) ? names[type] : names[0];
}

// The tables of one bundle; made once per model, read by all its instances.
class Lookup {
 public:
  explicit Lookup(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    if (!std::getline(file, line)) throw std::runtime_error(path + ": not readable; export the bundle again");
    const auto wrong = [&] { return std::runtime_error(path + ": got \"" + line + "\"; export the bundle again"); };
    if (line != kFormat) throw wrong();
    const auto rest_after = [&](const std::string& word) {
      if (!std::getline(file, line) || line.compare(0, word.size(), word) != 0) throw wrong();
      return line.substr(word.size());
    };
    bundle_ = rest_after("bundle ");
    const std::string folder = rest_after("folder ");
    while (std::getline(file, line)) {
      std::istringstream words(line);
      std::string word, dim, rows, overlay_rows, more;
      TableSaid said;
      words >> word >> said.name >> dim >> rows >> said.row_format >> overlay_rows;
      if (!words || word != "table" || words >> more || !parse(dim, said.dim) || !parse(rows, said.rows) ||
          !parse(overlay_rows, said.overlay_rows)) {
        throw wrong();
      }
      tables_.push_back(std::make_unique<Table>(folder, said));
    }
    if (tables_.empty()) throw std::runtime_error(path + ": names no table; export the bundle again");
    meter_ = std::make_unique<const SharedMeter>(bundle_);
  }

  const SharedMeter& meter() const { return *meter_; }
  std::string where() const { return "bundle \"" + bundle_ + "\", feed_hps: "; }

  // Floats of the answer. Throws a Failure unless the counts are those of the tables and every key is in its own.
  uint64_t check_keys(const Byte* keys, uint64_t num_keys, const std::vector<int32_t>& counts) const {
    int64_t sum = 0;
    bool fits = counts.size() == tables_.size();
    for (const int32_t count : counts) {
      fits = fits && count >= 0;
      sum += count;
    }
    if (!fits || sum != static_cast<int64_t>(num_keys)) {
      std::string names;
      for (const auto& table : tables_) names += (names.empty() ? "" : ", ") + table->name();
      throw refused("NUMKEYS: got " + list_of(counts) + " for " + std::to_string(num_keys) +
                    " KEYS; must be one count >= 0 for each of " + names + ", and their sum the number of KEYS");
    }
    uint64_t floats = 0;
    for (size_t t = 0; t < tables_.size(); ++t) {
      const Table& table = *tables_[t];
      const uint64_t count = static_cast<uint64_t>(counts[t]), at = table.first_outside(keys, count);
      if (at < count) {
        throw refused("table \"" + table.name() + "\": key " + std::to_string(load<int64_t>(keys, at)) + " (number " +
                      std::to_string(at) + ") is outside [0, " + std::to_string(table.num_rows()) +
                      "), its capacity_rows; send keys made by this bundle's own id map");
      }
      const uint64_t size = product(count, table.dim(), "OUTPUT0");
      if (__builtin_add_overflow(floats, size, &floats)) throw std::runtime_error("OUTPUT0: too large");
      keys += count * sizeof(int64_t);
    }
    return floats;
  }

  void decode(const Byte* keys, const std::vector<int32_t>& counts, float* out) const {
    for (size_t t = 0; t < tables_.size(); ++t) {
      const uint64_t count = static_cast<uint64_t>(counts[t]);
      tables_[t]->lookup(keys, count, out);
      keys += count * sizeof(int64_t);
      out += count * tables_[t]->dim();
    }
  }

 private:
  static bool parse(const std::string& text, uint64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  }

  std::string bundle_;
  std::vector<std::unique_ptr<Table>> tables_;
  std::unique_ptr<const SharedMeter> meter_;
};

// An input of a request; `data` lies in the request, or in `copied` when Triton has it in pieces.
class Tensor {
 public:
  Tensor(TRITONBACKEND_Request* request, const char* name, TRITONSERVER_DataType type, uint64_t item_bytes)
      : name_(name) {
    TRITONBACKEND_Input* input = nullptr;
    if (TRITONSERVER_Error* error = TRITONBACKEND_RequestInput(request, name, &input)) {
      TRITONSERVER_ErrorDelete(error);
      throw refused(name_ + ": missing; it must be given");
    }
    TRITONSERVER_DataType got_type = 0;
    const int64_t* shape = nullptr;
    uint32_t num_dimensions = 0, num_buffers = 0;
    uint64_t num_bytes = 0;
    check(TRITONBACKEND_InputProperties(
        input, nullptr, &got_type, &shape, &num_dimensions, &num_bytes, &num_buffers));
    if (got_type != type || num_dimensions != 2) {
      throw refused(name_ + ": got " + numpy_name(got_type) + " with " + std::to_string(num_dimensions) +
                    " dimensions; must be " + numpy_name(type) + " with 2");
    }
    shape_.assign(shape, shape + num_dimensions);
    uint64_t expected = item_bytes;
    for (const int64_t length : shape_) {
      if (length < 0) throw refused(name_ + ": got shape " + list_of(shape_) + "; must be [1, n]");
      expected = product(expected, static_cast<uint64_t>(length), name_);
    }
    if (num_bytes != expected) {
      throw refused(name_ + ": got " + std::to_string(num_bytes) + " bytes for shape " + list_of(shape_) +
                    "; must be " + std::to_string(expected));
    }
    read(input, num_buffers, num_bytes);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  void require_one_row() const {
    if (shape_[0] != 1) throw refused(name_ + ": got shape " + list_of(shape_) + "; must be [1, n]");
  }
  uint64_t size() const { return static_cast<uint64_t>(shape_[1]); }
  const Byte* data() const { return data_; }

 private:
  void read(TRITONBACKEND_Input* input, uint32_t num_buffers, uint64_t num_bytes) {
    if (num_buffers > 1) copied_.reserve(num_bytes);
    uint64_t seen = 0;
    for (uint32_t i = 0; i < num_buffers; ++i) {
      const void* buffer = nullptr;
      uint64_t size = 0;
      TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
      int64_t memory_id = 0;
      check(TRITONBACKEND_InputBuffer(input, i, &buffer, &size, &memory, &memory_id));
      if (memory == TRITONSERVER_MEMORY_GPU) throw refused(name_ + ": lies on a GPU; send it in memory of the host");
      if (size > num_bytes - seen) throw std::runtime_error(name_ + ": its buffers exceed its size");
      seen += size;
      data_ = static_cast<const Byte*>(buffer);
      if (num_buffers > 1) copied_.insert(copied_.end(), data_, data_ + size);
    }
    if (seen != num_bytes) throw std::runtime_error(name_ + ": its buffers are less than its size");
    if (num_buffers > 1) data_ = copied_.data();
  }

  std::string name_;
  std::vector<int64_t> shape_;
  const Byte* data_ = nullptr;
  std::vector<Byte> copied_;
};

struct Times {
  uint64_t start = 0, compute_start = 0, compute_end = 0;
};

// Fills a response for one request, or throws what is wrong with it.
void answer(const Lookup& lookup, TRITONBACKEND_Request* request, TRITONBACKEND_Response* response, Times& times) {
  const Tensor keys(request, "KEYS", TRITONSERVER_TYPE_INT64, sizeof(int64_t));
  const Tensor num_keys(request, "NUMKEYS", TRITONSERVER_TYPE_INT32, sizeof(int32_t));
  keys.require_one_row();
  num_keys.require_one_row();
  std::vector<int32_t> counts(num_keys.size());
  if (!counts.empty()) std::memcpy(counts.data(), num_keys.data(), counts.size() * sizeof(int32_t));
  times.compute_start = now_ns();
  const uint64_t floats = lookup.check_keys(keys.data(), keys.size(), counts);
  const uint64_t num_bytes = product(floats, sizeof(float), "OUTPUT0");
  const int64_t shape = static_cast<int64_t>(floats);
  TRITONBACKEND_Output* output = nullptr;
  check(TRITONBACKEND_ResponseOutput(response, &output, "OUTPUT0", TRITONSERVER_TYPE_FP32, &shape, 1));
  void* buffer = nullptr;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_OutputBuffer(output, &buffer, num_bytes, &memory, &memory_id));
  if (memory == TRITONSERVER_MEMORY_GPU) throw refused("OUTPUT0: is wanted on a GPU; ask for it in memory of the host");
  if (floats != 0 && buffer == nullptr) throw std::runtime_error("OUTPUT0: no buffer for it");
  if (floats == 0 || reinterpret_cast<uintptr_t>(buffer) % alignof(float) == 0) {
    lookup.decode(keys.data(), counts, static_cast<float*>(buffer));
  } else {  // a client's shared memory region may begin anywhere
    std::vector<float> aligned(floats);
    lookup.decode(keys.data(), counts, aligned.data());
    std::memcpy(buffer, aligned.data(), num_bytes);
  }
  times.compute_end = now_ns();
}

bool is_probe(TRITONBACKEND_Request* request) noexcept {
  const char* id = nullptr;
  ignore(TRITONBACKEND_RequestId(request, &id));
  return id != nullptr && std::strcmp(id, kProbe) == 0;
}

// Answers, counts and releases one request, whatever happens.
void serve(TRITONBACKEND_ModelInstance* instance, const Lookup& lookup, TRITONBACKEND_Request* request) noexcept {
  Times times;
  times.start = now_ns();
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, request);
  if (error == nullptr) {
    try {
      answer(lookup, request, response, times);
    } catch (...) {
      error = error_of(lookup.where());
    }
    ignore(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  }
  const bool good = error == nullptr;
  const bool refused = !good && TRITONSERVER_ErrorCode(error) == TRITONSERVER_ERROR_INVALID_ARG;
  const uint64_t end = now_ns();
  if (!is_probe(request)) {
    lookup.meter()->add(
        good ? Outcome::kOk : refused ? Outcome::kRefused : Outcome::kFailed, end - times.start);
  }
  ignore(error);
  ignore(TRITONBACKEND_ModelInstanceReportStatistics(
      instance, request, good, times.start, times.compute_start, times.compute_end, end));
  if (good) {  // each request is an execution of its own
    ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance, 1, times.start, times.compute_start, times.compute_end, end));
  }
  ignore(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
}

}  // namespace
}  // namespace sparsefeed

#define SPARSEFEED_EXPORT extern "C" __attribute__((visibility("default")))

SPARSEFEED_EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  uint32_t major = 0, minor = 0;
  if (TRITONSERVER_Error* error = TRITONBACKEND_ApiVersion(&major, &minor)) return error;
  if (major == 1) return nullptr;
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNSUPPORTED, "sparsefeed: made for version 1 of Triton's backend API");
}

SPARSEFEED_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  using namespace sparsefeed;
  try {
    TRITONBACKEND_ArtifactType kind = TRITONBACKEND_ARTIFACT_FILESYSTEM;
    const char* location = nullptr;
    uint64_t version = 0;
    check(TRITONBACKEND_ModelRepository(model, &kind, &location));
    check(TRITONBACKEND_ModelVersion(model, &version));
    if (kind != TRITONBACKEND_ARTIFACT_FILESYSTEM) throw std::runtime_error("the model must lie in a file system");
    auto lookup = std::make_unique<Lookup>(std::string(location) + "/" + std::to_string(version) + "/tables.txt");
    check(TRITONBACKEND_ModelSetState(model, lookup.get()));
    lookup.release();
    return nullptr;
  } catch (...) {
    return error_of("feed_hps: ");
  }
}

SPARSEFEED_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  if (TRITONSERVER_Error* error = TRITONBACKEND_ModelState(model, &state)) return error;
  delete static_cast<sparsefeed::Lookup*>(state);
  return nullptr;
}

SPARSEFEED_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, const uint32_t request_count) {
  TRITONBACKEND_Model* model = nullptr;
  void* state = nullptr;
  if (TRITONSERVER_Error* error = TRITONBACKEND_ModelInstanceModel(instance, &model)) return error;
  if (TRITONSERVER_Error* error = TRITONBACKEND_ModelState(model, &state)) return error;
  for (uint32_t i = 0; i < request_count; ++i) {
    sparsefeed::serve(instance, *static_cast<const sparsefeed::Lookup*>(state), requests[i]);
  }
  return nullptr;
}
