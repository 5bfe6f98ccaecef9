"""What a set notes about its images besides emotion: from its own tables to the samples, and into the text."""

import json

import pytest
from importer_run import imported, picture

from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import REASONING_TAGS
from emocaliber.runtime.samples import Sample, read_samples, write_samples


def test_oasis_notes_theme_and_category(tmp_path):
    header = ",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N\n"
    (tmp_path / "OASIS.csv").write_text(header + "I1,Fire hydrant 12,Object,P,5,1,100\nI2,Lake 1,,P,5,1,100\n")
    picture(tmp_path / "images/Fire hydrant 12.jpg")
    picture(tmp_path / "images/Lake 1.jpg", 90)
    lines = imported("oasis", tmp_path, tmp_path / "out")
    assert lines["oasis/Fire hydrant 12.jpg"]["annotations"] == {"category": "object", "theme": "fire hydrant"}
    assert lines["oasis/Lake 1.jpg"]["annotations"] == {"theme": "lake"}


def test_bass_notes_its_motif_and_ferplus_that_there_is_a_face(tmp_path):
    header = "file_name,val_mean_us,val_sd_us,val_n_us,val_mean_ch,val_sd_ch,val_n_ch\n"
    (tmp_path / "BASS_data.csv").write_text(header + "Dog2.png,6,1,100,3,2,50\n")
    picture(tmp_path / "images/Dog2.png")
    assert imported("bass", tmp_path, tmp_path / "b")["bass/Dog2.png"]["annotations"] == {"motif": "dog"}
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    (tmp_path / "fer2013new.csv").write_text(header + "Training,a.png,9,0,0,0,0,0,0,1,0,0\n")
    picture(tmp_path / "images/a.png")
    assert imported("ferplus", tmp_path, tmp_path / "f")["ferplus/a.png"]["annotations"] == {"category": "face"}


def test_emotion6_notes_nothing_though_its_folders_are_search_words(tmp_path):
    header = "[image_filename]\t[prob. anger]\t[prob. disgust]\t[prob. fear]\t[prob. joy]\t[prob. sadness]\t"
    row = "fear/1.jpg\t0\t0\t0\t1\t0\t0\t0\n"
    (tmp_path / "ground_truth.txt").write_text(header + "[prob. surprise]\t[prob. neutral]\n" + row)
    picture(tmp_path / "images/fear/1.jpg")
    (line,) = imported("emotion6", tmp_path, tmp_path / "out").values()
    assert "annotations" not in line


def test_annotations_survive_a_file(tmp_path):
    sample = Sample(image="/a.png", taxonomy="fi-8", annotations={"scene": "a street, at night"})
    write_samples([sample], tmp_path / "s.jsonl")
    assert read_samples(tmp_path / "s.jsonl") == [sample]


@pytest.mark.parametrize("annotations", [{"": "x"}, {"scene": " "}, {"scene": "<b>"}, {"sc>ene": "x"}, {"a": "b\nc"}])
def test_annotations_are_plain_words(annotations):
    with pytest.raises(InputError, match="expected plain words on one line, without tags"):
        Sample(image="/a.png", taxonomy="fi-8", annotations=annotations)


@pytest.mark.parametrize(("name", "category"), [("oasis", "animal"), ("bass", None), ("emotion6", None)])
def test_real_sets_get_short_texts_of_few_words_that_differ(tmp_path, real_sets, name, category):
    source = real_sets / name
    if not source.is_dir():
        pytest.skip(f"no {name}")
    everything = imported(name, source, tmp_path / "set")
    lines = (tmp_path / "set/samples.jsonl").read_text(encoding="utf-8").splitlines()[::7]
    (tmp_path / "set/samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    assert main(["data", "build-cot", str(tmp_path / "set/samples.jsonl"), str(out), "--from", "cues"]) == 0
    samples = read_samples(out / "samples.jsonl")
    assert len(samples) == len(lines) < len(everything)
    record = json.loads((out / "samples.provenance.json").read_text())
    assert record["texts"]["words_max"] <= 60
    annotated = {word for sample in samples for text in (sample.annotations or {}).values() for word in text.split()}
    assert record["texts"]["vocabulary"] - len(annotated) < 100
    parts = [tuple((sample.reasoning or {})[tag] for tag in REASONING_TAGS[:-1]) for sample in samples]
    assert len(set(parts)) > (0.3 if name == "bass" else 0.9) * len(samples)
    if category is not None:
        told = [sample for sample in samples if (sample.reasoning or {})["human"] == f"subject: {category}"]
        assert told == [sample for sample in samples if (sample.annotations or {})["category"] == category]
        assert told
