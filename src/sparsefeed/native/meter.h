// What the Python steps count of themselves (workflows/serving/steps/readings.py), counted on Triton's metrics page
// by the native lookup: requests by outcome, calls, and how long they took. Names and descriptions are those of
// readings.FAMILIES; the label `backend` keeps them apart from a Python step's, whose counters go with its process. A
// server without metrics counts nothing.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "triton_api.h"

namespace sparsefeed {

enum class Outcome { kOk, kRefused, kFailed };

class Meter {
 public:
  explicit Meter(const std::string& bundle) {
    const Labels own = {{"bundle", bundle}, {"step", "feed_hps"}, {"backend", "native"}};
    const auto with = [&own](const char* name, const std::string& value) {
      Labels labels = own;
      labels.emplace_back(name, value);
      return labels;
    };
    requests_ = family(
        "sparsefeed_requests_total", "Requests of a step by outcome: ok, refused (the client's fault), failed",
        {with("outcome", "ok"), with("outcome", "refused"), with("outcome", "failed")});
    calls_ = family("sparsefeed_calls_total", "Calls of a step; requests over calls is how many were joined", {own});
    seconds_ = family(
        "sparsefeed_compute_seconds_total", "Seconds a step computed, over all its processes", {own});
    std::vector<Labels> bounds;
    for (const auto& [text, seconds] : kBounds) bounds.push_back(with("le", text));
    bounds.push_back(with("le", "+Inf"));
    buckets_ = family(
        "sparsefeed_compute_seconds_bucket", "Calls of a step that took at most `le` seconds", bounds);
  }

  // Counts a request, which is a call of its own.
  void add(Outcome outcome, uint64_t nanoseconds) const noexcept {
    const double seconds = 1e-9 * static_cast<double>(nanoseconds);
    increment(requests_, static_cast<size_t>(outcome), 1);
    increment(calls_, 0, 1);
    increment(seconds_, 0, seconds);
    for (size_t i = 0; i < kBounds.size(); ++i) {
      if (seconds <= kBounds[i].second) increment(buckets_, i, 1);
    }
    increment(buckets_, kBounds.size(), 1);
  }

 private:
  using Labels = std::vector<std::pair<std::string, std::string>>;
  template <class Thing, TRITONSERVER_Error* (*remove)(Thing*)>
  struct Remove {
    void operator()(Thing* thing) const {
      if (TRITONSERVER_Error* error = remove(thing)) TRITONSERVER_ErrorDelete(error);
    }
  };
  using Metric = std::unique_ptr<TRITONSERVER_Metric, Remove<TRITONSERVER_Metric, TRITONSERVER_MetricDelete>>;
  struct Family {  // members go in reverse: the metrics before what they are of
    std::unique_ptr<TRITONSERVER_MetricFamily, Remove<TRITONSERVER_MetricFamily, TRITONSERVER_MetricFamilyDelete>> of;
    std::vector<Metric> metrics;
  };

  static Family family(const char* name, const char* description, const std::vector<Labels>& all) {
    Family made;
    TRITONSERVER_MetricFamily* of = nullptr;
    if (is_error(TRITONSERVER_MetricFamilyNew(&of, TRITONSERVER_METRIC_KIND_COUNTER, name, description))) return made;
    made.of.reset(of);
    for (const Labels& labels : all) {
      std::vector<const TRITONSERVER_Parameter*> parameters;
      for (const auto& [key, value] : labels) {
        parameters.push_back(TRITONSERVER_ParameterNew(key.c_str(), TRITONSERVER_PARAMETER_STRING, value.c_str()));
      }
      TRITONSERVER_Metric* metric = nullptr;
      const bool failed = is_error(TRITONSERVER_MetricNew(&metric, of, parameters.data(), parameters.size()));
      for (const TRITONSERVER_Parameter* parameter : parameters) {
        TRITONSERVER_ParameterDelete(const_cast<TRITONSERVER_Parameter*>(parameter));
      }
      made.metrics.emplace_back(failed ? nullptr : metric);
    }
    return made;
  }

  static void increment(const Family& family, size_t number, double value) noexcept {
    if (number < family.metrics.size() && family.metrics[number] != nullptr) {
      is_error(TRITONSERVER_MetricIncrement(family.metrics[number].get(), value));
    }
  }

  static bool is_error(TRITONSERVER_Error* error) noexcept {
    if (error != nullptr) TRITONSERVER_ErrorDelete(error);
    return error != nullptr;
  }

  // Upper bounds, as readings.SECONDS.
  static constexpr std::array<std::pair<const char*, double>, 10> kBounds = {{
      {"0.0005", 0.0005}, {"0.001", 0.001}, {"0.002", 0.002}, {"0.005", 0.005}, {"0.01", 0.01},
      {"0.02", 0.02}, {"0.05", 0.05}, {"0.1", 0.1}, {"0.2", 0.2}, {"0.5", 0.5},
  }};

  Family requests_, calls_, seconds_, buckets_;
};

// The meter of a bundle, one for all models of it that are there at once, as while one is loaded again: two would be of
// the same counters, which Triton removes with the first that goes.
class SharedMeter {
 public:
  explicit SharedMeter(const std::string& bundle) : bundle_(bundle) {
    const std::lock_guard<std::mutex> lock(all().mutex);
    Entry& entry = all().entries[bundle];
    if (entry.meter == nullptr) entry.meter = std::make_unique<Meter>(bundle);
    ++entry.num_users;
    meter_ = entry.meter.get();
  }
  ~SharedMeter() {
    const std::lock_guard<std::mutex> lock(all().mutex);
    const auto found = all().entries.find(bundle_);
    if (--found->second.num_users == 0) all().entries.erase(found);
  }
  SharedMeter(const SharedMeter&) = delete;
  SharedMeter& operator=(const SharedMeter&) = delete;

  const Meter* operator->() const { return meter_; }

 private:
  struct Entry {
    std::unique_ptr<const Meter> meter;
    int num_users = 0;
  };
  struct All {
    std::mutex mutex;
    std::map<std::string, Entry> entries;
  };
  static All& all() {
    static All& made = *new All;  // never removed: a model may go while the process ends
    return made;
  }

  std::string bundle_;
  const Meter* meter_ = nullptr;
};

}  // namespace sparsefeed
