// A stand-in for tritonserver that misbehaves on demand: it has the functions the backend calls, reads one request a
// line and prints what became of it. Built with the backend's sources and the address and undefined behaviour
// sanitizers, which end it at the first byte read or written beyond what a request holds.
//
//   host MODEL_FOLDER [without-metrics | reloaded]    then lines of words:
//     KEYS=9:1,3:<hex>|<hex>   an input: type, shape, its bytes in pieces; each piece begins at an odd address
//     gpu=KEYS                 its pieces are said to lie on a GPU
//     size=KEYS:5              its size is said to be 5
//     output=WAY               cpu, odd (an odd address), gpu, error, throw, nothing
//     response=error           no response can be made
//     id=TEXT                  the request's id
//   or a line `metrics`: what was counted
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "triton_api.h"

struct TRITONSERVER_Error {
  int code;
  std::string message;
};

struct TRITONBACKEND_Model {
  std::string location;
  void* state = nullptr;
};

struct TRITONBACKEND_ModelInstance {
  TRITONBACKEND_Model* model;
};

// Bytes at an odd address, at the very end of their allocation.
struct Odd {
  explicit Odd(size_t size, bool is_odd = true) : skipped(is_odd ? 1 : 0), bytes(new char[size + skipped]) {}
  char* data() const { return bytes.get() + skipped; }
  size_t skipped;
  std::unique_ptr<char[]> bytes;
};

struct Piece {
  uint64_t size;
  Odd bytes;
};

struct TRITONBACKEND_Input {
  int type = 0, memory = 0;
  std::vector<int64_t> shape;
  std::vector<Piece> pieces;
  uint64_t size = 0;
};

struct TRITONBACKEND_Output {
  uint64_t size = 0;
  std::unique_ptr<Odd> bytes;
};

struct TRITONBACKEND_Request {
  std::map<std::string, TRITONBACKEND_Input> inputs;
  std::string output_way = "cpu", response_way = "good", id, answer;
  int num_sent = 0, num_released = 0, num_good = 0, num_failed = 0, num_batches = 0;
};

struct TRITONBACKEND_Response {
  TRITONBACKEND_Request* request;
  std::vector<std::unique_ptr<TRITONBACKEND_Output>> outputs;
};

struct TRITONSERVER_Parameter {
  std::string text;
};

// As in Triton: families of one name share the counters of equal labels, each family counts its own metrics of a
// counter, and the counter goes with the last of these, whoever else has it.
struct TRITONSERVER_MetricFamily {
  std::string name;
  std::map<double*, int> num_metrics;
};

struct TRITONSERVER_Metric {
  TRITONSERVER_MetricFamily* family;
  std::string key;
  double* counter;
};

static bool has_metrics = true;
static std::map<std::string, std::unique_ptr<double>> counters;  // by name and labels

static TRITONBACKEND_Request* current = nullptr;  // batch statistics name no request

static TRITONSERVER_Error* wrong(const char* message) { return new TRITONSERVER_Error{1, message}; }

extern "C" {

TRITONSERVER_Error* TRITONSERVER_ErrorNew(int code, const char* message) {
  return new TRITONSERVER_Error{code, message};
}
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error) { delete error; }
int TRITONSERVER_ErrorCode(TRITONSERVER_Error* error) { return error->code; }
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error) { return error->message.c_str(); }

TRITONSERVER_Parameter* TRITONSERVER_ParameterNew(const char* name, int type, const void* value) {
  if (type != TRITONSERVER_PARAMETER_STRING) return nullptr;
  return new TRITONSERVER_Parameter{std::string(name) + "=" + static_cast<const char*>(value)};
}
void TRITONSERVER_ParameterDelete(TRITONSERVER_Parameter* parameter) { delete parameter; }
TRITONSERVER_Error* TRITONSERVER_MetricFamilyNew(
    TRITONSERVER_MetricFamily** family, int kind, const char* name, const char* description) {
  if (!has_metrics || kind != TRITONSERVER_METRIC_KIND_COUNTER || *description == 0) return wrong("no metrics");
  *family = new TRITONSERVER_MetricFamily{name, {}};
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricFamilyDelete(TRITONSERVER_MetricFamily* family) {
  const bool is_empty = family->num_metrics.empty();
  delete family;
  if (!is_empty) std::abort();
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricNew(
    TRITONSERVER_Metric** metric, TRITONSERVER_MetricFamily* family, const TRITONSERVER_Parameter** labels,
    uint64_t label_count) {
  std::string text;
  for (uint64_t i = 0; i < label_count; ++i) text += (i ? "," : "") + labels[i]->text;
  const std::string key = family->name + "{" + text + "}";
  std::unique_ptr<double>& counter = counters[key];
  if (counter == nullptr) counter = std::make_unique<double>(0);
  *metric = new TRITONSERVER_Metric{family, key, counter.get()};
  ++family->num_metrics[counter.get()];
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricDelete(TRITONSERVER_Metric* metric) {
  if (--metric->family->num_metrics.at(metric->counter) == 0) {
    metric->family->num_metrics.erase(metric->counter);
    counters.erase(metric->key);
  }
  delete metric;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricIncrement(TRITONSERVER_Metric* metric, double value) {
  *metric->counter += value;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor) {
  *major = 1;
  *minor = 0;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelVersion(TRITONBACKEND_Model*, uint64_t* version) {
  *version = 1;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelRepository(TRITONBACKEND_Model* model, int* kind, const char** location) {
  *kind = 0;
  *location = model->location.c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelState(TRITONBACKEND_Model* model, void** state) {
  *state = model->state;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelSetState(TRITONBACKEND_Model* model, void* state) {
  model->state = state;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Model** model) {
  *model = instance->model;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request* request, bool success, uint64_t start, uint64_t compute_start,
    uint64_t compute_end, uint64_t end) {
  const bool in_order = start <= compute_start && compute_start <= compute_end && compute_end <= end;
  (success ? request->num_good : request->num_failed) += !success || in_order ? 1 : 100;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(
    TRITONBACKEND_ModelInstance*, uint64_t batch_size, uint64_t, uint64_t, uint64_t, uint64_t) {
  current->num_batches += static_cast<int>(batch_size);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestId(TRITONBACKEND_Request* request, const char** id) {
  *id = request->id.c_str();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestInput(
    TRITONBACKEND_Request* request, const char* name, TRITONBACKEND_Input** input) {
  const auto found = request->inputs.find(name);
  if (found == request->inputs.end()) return wrong("no such input");
  *input = &found->second;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, uint32_t) {
  ++request->num_released;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input* input, const char**, int* type, const int64_t** shape, uint32_t* dims_count,
    uint64_t* byte_size, uint32_t* buffer_count) {
  *type = input->type;
  *shape = input->shape.data();
  *dims_count = static_cast<uint32_t>(input->shape.size());
  *byte_size = input->size;
  *buffer_count = static_cast<uint32_t>(input->pieces.size());
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input* input, uint32_t index, const void** buffer, uint64_t* size, int* memory, int64_t* memory_id) {
  *buffer = input->pieces[index].bytes.data();
  *size = input->pieces[index].size;
  *memory = input->memory;
  *memory_id = 0;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response** response, TRITONBACKEND_Request* request) {
  if (request->response_way == "error") return wrong("no response can be made");
  *response = new TRITONBACKEND_Response{request, {}};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(
    TRITONBACKEND_Response* response, TRITONBACKEND_Output** output, const char* name, int type, const int64_t* shape,
    uint32_t dims_count) {
  if (std::string(name) != "OUTPUT0" || type != TRITONSERVER_TYPE_FP32 || dims_count != 1 || shape[0] < 0) {
    return wrong("not the output of the contract");
  }
  response->outputs.push_back(std::make_unique<TRITONBACKEND_Output>());
  *output = response->outputs.back().get();
  (*output)->size = static_cast<uint64_t>(shape[0]) * sizeof(float);
  response->request->answer = response->request->output_way;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(
    TRITONBACKEND_Output* output, void** buffer, uint64_t size, int* memory, int64_t*) {
  const std::string& way = current->output_way;
  if (size != output->size) return wrong("not the size of its shape");
  if (way == "error") return wrong("no memory is left");
  if (way == "throw") throw std::bad_alloc();
  output->bytes = std::make_unique<Odd>(size, way == "odd");
  *memory = way == "gpu" ? TRITONSERVER_MEMORY_GPU : TRITONSERVER_MEMORY_CPU;
  *buffer = way == "nothing" ? nullptr : output->bytes->data();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(
    TRITONBACKEND_Response* response, uint32_t flags, TRITONSERVER_Error* error) {
  TRITONBACKEND_Request& request = *response->request;
  request.num_sent += flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL ? 1 : 100;
  if (error != nullptr) {
    request.answer = std::to_string(error->code) + " " + error->message;
  } else {
    std::string text = "ok ";
    const TRITONBACKEND_Output& output = *response->outputs.at(0);
    for (uint64_t i = 0; i < output.size; ++i) {
      char digits[3];
      std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned char>(output.bytes->data()[i]));
      text += digits;
    }
    request.answer = text;
  }
  delete response;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*);
TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model*);
TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model*);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request**, uint32_t);

}  // extern "C"

static TRITONBACKEND_Input input_of(const std::string& text) {
  TRITONBACKEND_Input input;
  const size_t first = text.find(':'), second = text.find(':', first + 1);
  input.type = std::stoi(text.substr(0, first));
  std::istringstream lengths(text.substr(first + 1, second - first - 1));
  for (std::string length; std::getline(lengths, length, ',');) input.shape.push_back(std::stoll(length));
  std::istringstream pieces(text.substr(second + 1));
  for (std::string hex; std::getline(pieces, hex, '|');) {
    Piece piece{hex.size() / 2, Odd(hex.size() / 2)};
    for (uint64_t i = 0; i < piece.size; ++i) {
      piece.bytes.data()[i] = static_cast<char>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
    }
    input.size += piece.size;
    input.pieces.push_back(std::move(piece));
  }
  return input;
}

static void read(TRITONBACKEND_Request& request, const std::string& line) {
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    const std::string name = word.substr(0, word.find('=')), value = word.substr(name.size() + 1);
    if (name == "output") {
      request.output_way = value;
    } else if (name == "response") {
      request.response_way = value;
    } else if (name == "id") {
      request.id = value;
    } else if (name == "gpu") {
      request.inputs.at(value).memory = TRITONSERVER_MEMORY_GPU;
    } else if (name == "size") {
      const size_t colon = value.find(':');
      request.inputs.at(value.substr(0, colon)).size = std::stoull(value.substr(colon + 1));
    } else {
      request.inputs[name] = input_of(value);
    }
  }
}

int main(int count, char** arguments) {
  const std::string option = count > 2 ? arguments[2] : "";
  has_metrics = option != "without-metrics";
  TRITONBACKEND_Model model{arguments[1]};
  TRITONSERVER_Error* error = TRITONBACKEND_Initialize(nullptr);
  if (error == nullptr) error = TRITONBACKEND_ModelInitialize(&model);
  std::cout << (error == nullptr ? "loaded" : std::to_string(error->code) + " " + error->message) << std::endl;
  if (error != nullptr) {
    delete error;
    return 0;
  }
  TRITONBACKEND_Model again{arguments[1]};
  const bool is_reloaded = option == "reloaded";  // as Triton does: the old one goes when the new one is there
  if (is_reloaded) {
    if (TRITONBACKEND_ModelInitialize(&again) != nullptr) std::abort();
    TRITONBACKEND_ModelFinalize(&model);
  }
  TRITONBACKEND_ModelInstance instance{is_reloaded ? &again : &model};
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "metrics") {
      for (const auto& [name, counter] : counters) std::cout << name << ' ' << *counter << ';';
      std::cout << std::endl;
      continue;
    }
    TRITONBACKEND_Request request;
    TRITONBACKEND_Request* pointer = current = &request;
    read(request, line);
    delete TRITONBACKEND_ModelInstanceExecute(&instance, &pointer, 1);
    std::cout << request.num_sent << request.num_released << request.num_good << request.num_failed
              << request.num_batches << ' ' << request.answer << std::endl;
  }
  TRITONBACKEND_ModelFinalize(is_reloaded ? &again : &model);
  return counters.empty() ? 0 : 1;
}
