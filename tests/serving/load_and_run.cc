// The path TensorFlow Serving takes: LoadSavedModel with the tag "serve", then Session::Run by signature names.
// load_and_run EXPORT SIGNATURE_OUTPUT... -- IMAGE...: runs serving_bytes on the files as one batch and prints each
// output as "name dims: values" (floats in hexadecimal, nothing is lost).

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session.h"

namespace tf = tensorflow;

static std::string Read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

static void Print(const std::string& name, const tf::Tensor& value) {
  std::printf("%s", name.c_str());
  for (int i = 0; i < value.dims(); ++i) std::printf(" %lld", static_cast<long long>(value.dim_size(i)));
  std::printf(":");
  for (int64_t i = 0; i < value.NumElements(); ++i) {
    if (value.dtype() == tf::DT_FLOAT) std::printf(" %a", static_cast<double>(value.flat<float>()(i)));
    if (value.dtype() == tf::DT_INT32) std::printf(" %d", value.flat<int>()(i));
    if (value.dtype() == tf::DT_INT64) std::printf(" %lld", static_cast<long long>(value.flat<int64_t>()(i)));
  }
  std::printf("\n");
}

int main(int argc, char** argv) {
  std::vector<std::string> names;
  int arg = 2;
  for (; arg < argc && std::string(argv[arg]) != "--"; ++arg) names.push_back(argv[arg]);
  const int images = argc - arg - 1;
  tf::SavedModelBundle bundle;
  auto status = tf::LoadSavedModel(tf::SessionOptions(), tf::RunOptions(), argv[1], {"serve"}, &bundle);
  if (!status.ok()) {
    std::fprintf(stderr, "load: %s\n", status.ToString().c_str());
    return 1;
  }
  const auto& signature = bundle.meta_graph_def.signature_def().at("serving_bytes");
  tf::Tensor input(tf::DT_STRING, tf::TensorShape({images}));
  for (int i = 0; i < images; ++i) input.flat<tf::tstring>()(i) = Read(argv[arg + 1 + i]);
  std::vector<std::string> fetches;
  for (const auto& name : names) fetches.push_back(signature.outputs().at(name).name());
  std::vector<tf::Tensor> outputs;
  status = bundle.session->Run({{signature.inputs().at("image_bytes").name(), input}}, fetches, {}, &outputs);
  if (!status.ok()) {
    std::fprintf(stderr, "run: %s\n", status.ToString().c_str());
    return 2;
  }
  for (size_t i = 0; i < names.size(); ++i) Print(names[i], outputs[i]);
  return 0;
}
